//! The commands for volumes that are not mounted, or that look at their files.

use super::Text;

pub const TEXTS: &[Text] = &[
    Text {
        command: "kmsfs init",
        about: "\
The volume's own key is made here, wrapped by the key that is given, and stored in VOLUME/volume.kmsfs. Keep a copy of that \
file: without it, or without the key, nobody can ever read the volume. What is chosen here, but for the keys, cannot be \
changed later.

The directory has to be on ext4, XFS or btrfs, with extended attributes.",
        examples: &[
            ("Under a key in Azure Key Vault", "kmsfs init /srv/tenant-a --kek https://NAME.vault.azure.net/keys/tenant-a"),
            ("Under a key in AWS KMS", "kmsfs init /srv/tenant-a --kek arn:aws:kms:REGION:ACCOUNT:alias/tenant-a"),
            ("Under a key in OpenBao or Vault", "kmsfs init /srv/tenant-a --kek transit+https://bao.example:8200/transit/keys/tenant-a"),
            (
                "With a recovery key elsewhere",
                "kmsfs init /srv/tenant-a --kek https://NAME.vault.azure.net/keys/tenant-a --recovery-kek https://OTHER.vault.azure.net/keys/escrow",
            ),
        ],
        exits: &[3, 6, 7, 8, 11, 12, 13],
        see: &["kmsfs mount", "kmsfs key test", "kmsfs info"],
    },
    Text {
        command: "kmsfs info",
        about: "It reads what is not secret: the keys that wrap the volume, its settings, who has mounted it.",
        examples: &[
            ("Show what a volume is", "kmsfs info /srv/tenant-a"),
            ("Print its id only", "kmsfs info /srv/tenant-a --json | jq -r .volume_id"),
            ("Count the files under each version of its key", "kmsfs info /srv/tenant-a --count"),
        ],
        exits: &[3, 7, 13],
        see: &["kmsfs status", "kmsfs fsck"],
    },
    Text {
        command: "kmsfs fsck",
        about: "\
Without --deep it looks at names, directory ids, links, headers and lengths, and needs neither a key nor a KMS. With --deep \
it asks the KMS for the keys, once for each envelope, and authenticates every byte. It changes nothing, unless it is told to \
by --recover or --quarantine.",
        examples: &[
            ("Check the structure", "kmsfs fsck /srv/tenant-a"),
            ("Authenticate everything, and go on after an interruption", "kmsfs fsck /srv/tenant-a --deep --state /var/tmp/tenant-a.fsck"),
            ("Move damaged files out of the volume", "kmsfs fsck /srv/tenant-a --deep --quarantine /srv/damaged"),
        ],
        exits: &[],
        see: &["kmsfs scrub", "kmsfs audit"],
    },
    Text {
        command: "kmsfs import",
        about: "\
Everything is read back and compared before it ends well. Hard links, holes, owners, modes, times, extended attributes and \
access control lists are kept. Interrupted, the same command goes on where it was.",
        examples: &[
            ("Encrypt a tree", "kmsfs import /home/tenant-a /srv/tenant-a"),
            ("Say in the audit log where it came from", "kmsfs import /home/tenant-a /srv/tenant-a --label old-server"),
        ],
        exits: &[],
        see: &["kmsfs export", "kmsfs init", "kmsfs audit"],
    },
    Text {
        command: "kmsfs export",
        about: "Everything is read back and compared before it ends well. Interrupted, the same command goes on where it was.",
        examples: &[("Decrypt a volume into a new directory", "kmsfs export /srv/tenant-a /home/tenant-a")],
        exits: &[],
        see: &["kmsfs import", "kmsfs certify"],
    },
    Text {
        command: "kmsfs certify",
        about: "\
The key's owner has taken it away. The certificate says what the KMS answers for every key that the volume needs, that what \
is stored is ciphertext, and what the audit log knows; it is signed with an Ed25519 key, and comes with a page to print.",
        examples: &[
            ("Make a certificate", "kmsfs certify /srv/tenant-a --output tenant-a"),
            ("Check one against the key that has to have signed it", "kmsfs certify --verify tenant-a.json --public-key KEY"),
        ],
        exits: &[],
        see: &["kmsfs audit", "kmsfs export"],
    },
    Text {
        command: "kmsfs audit",
        about: "\
Every volume has a log in VOLUME/audit, in JSON lines, each with the hash of the line before it: mounts, locks, refusals, \
unwraps, damage. Files are named by their ids, never by their names.",
        examples: &[
            ("What happened in the last two hours", "kmsfs audit show /srv/tenant-a --since 2h"),
            ("Check that no line was changed", "kmsfs audit verify /srv/tenant-a"),
        ],
        exits: &[],
        see: &["kmsfs audit show", "kmsfs audit verify"],
    },
    Text {
        command: "kmsfs audit show",
        about: "",
        examples: &[
            ("What happened in the last two hours", "kmsfs audit show /srv/tenant-a --since 2h"),
            ("What happens from now on", "kmsfs audit show /srv/tenant-a --follow --since 0s"),
            ("Every refusal, as JSON", "kmsfs audit show /srv/tenant-a --json | jq 'select(.event == \"lease-denied\")'"),
        ],
        exits: &[3, 13, 130],
        see: &["kmsfs audit verify"],
    },
    Text {
        command: "kmsfs audit verify",
        about: "\
Lines that were cut off at the end cannot be seen from the log alone, because an older log is a right one: note the head \
from time to time somewhere else.",
        examples: &[
            ("Check the chain", "kmsfs audit verify /srv/tenant-a"),
            ("Check the checkpoints as well, with the volume's key", "kmsfs audit verify /srv/tenant-a --deep"),
            ("Note the head of each mount's log", "kmsfs status --json | jq -r '.[].audit.head'"),
        ],
        exits: &[3, 6, 7, 8, 11, 12, 13],
        see: &["kmsfs audit show", "kmsfs status"],
    },
    Text {
        command: "kmsfs rollback",
        about: "\
A volume cannot tell by itself that somebody put back an old copy of it, or of one file. A mount with --rollback-guard can, \
and refuses it.",
        examples: &[(
            "Take a restored backup for what the volume is from now on",
            "kmsfs rollback accept /srv/tenant-a --rollback-guard /var/lib/kmsfs/guards",
        )],
        exits: &[],
        see: &["kmsfs rollback accept", "kmsfs mount"],
    },
    Text {
        command: "kmsfs rollback accept",
        about: "It needs the volume's key, and a volume that is not mounted.",
        examples: &[
            ("Look at a restored backup first", "kmsfs mount /srv/tenant-a /mnt --rollback-guard /var/lib/kmsfs/guards -o ro --on-rollback warn"),
            ("Accept it", "kmsfs rollback accept /srv/tenant-a --rollback-guard /var/lib/kmsfs/guards"),
            ("Accept one file", "kmsfs rollback accept /srv/tenant-a --rollback-guard /var/lib/kmsfs/guards --file tree/STORED"),
        ],
        exits: &[3, 6, 7, 8, 9, 11, 12, 13, 15],
        see: &["kmsfs mount", "kmsfs fsck"],
    },
];
