//! What the manual pages say beside the options: more about the command, examples, exit codes, what else to read.

mod dev_vault;
mod keys;
mod mounts;
mod tenants;
mod volumes;

/// What one page says.
pub struct Text {
    /// The command in words.
    pub command: &'static str,
    /// Paragraphs that follow what the command's help says of it.
    pub about: &'static str,
    /// What is done, and the lines of a shell that do it.
    pub examples: &'static [(&'static str, &'static str)],
    /// The exit codes that it can have besides 0, 1 and 2, if its help does not say.
    pub exits: &'static [u8],
    /// Other pages: commands in words, or a page with its section.
    pub see: &'static [&'static str],
}

/// The texts of all commands.
pub fn all() -> Vec<&'static Text> {
    [ROOT, volumes::TEXTS, mounts::TEXTS, tenants::TEXTS, keys::TEXTS, dev_vault::TEXTS].into_iter().flatten().collect()
}

const ROOT: &[Text] = &[Text {
    command: "kmsfs",
    about: "\
A volume is a directory of encrypted files; mounted, it is a directory of plain ones. Each file has a key of its own, \
wrapped by a key in Azure Key Vault, a Managed HSM, AWS KMS, Google Cloud KMS, Vault or OpenBao, or by a raw key. When \
the owner of that key disables it, a mounted volume turns unreadable within seconds, for programs that had its files open \
too. When it is enabled again, everything is back.

Errors go to standard error as one line that begins with 'error:', where possible followed by one that begins with 'hint:' \
and says what to do.

The log is written at the level that the environment variable KMSFS_LOG names, for instance warn,kmsfs=debug.",
    examples: &[
        ("Make a volume under a key in Azure Key Vault", "kmsfs init /srv/tenant-a --kek https://NAME.vault.azure.net/keys/tenant-a"),
        ("Mount it", "kmsfs mount /srv/tenant-a /data/tenant-a"),
        ("See how all mounts are doing", "kmsfs status"),
        ("Unmount it", "kmsfs umount /data/tenant-a"),
    ],
    exits: &[],
    see: &["kmsfs init", "kmsfs mount", "kmsfs status", "kmsfs key test", "kmsfs tenant", "kmsfs dev-vault", "kmsfs.toml(5)", "mount.kmsfs(8)", "fuse(4)"],
}];
