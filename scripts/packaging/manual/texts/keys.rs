//! The commands for keys.

use super::Text;

pub const TEXTS: &[Text] = &[
    Text {
        command: "kmsfs key",
        about: "",
        examples: &[
            (
                "See whether a key works, before anything depends on it",
                "kmsfs key test https://NAME.vault.azure.net/keys/tenant-a",
            ),
            ("Make a raw key", "kmsfs key generate --output /root/demo.key"),
        ],
        exits: &[],
        see: &["kmsfs key test", "kmsfs key generate", "kmsfs init"],
    },
    Text {
        command: "kmsfs key generate",
        about: "\
A raw key needs no KMS: whoever can read the file can read the volume, and to take the file away is to revoke it. It has to \
be readable by its owner only.",
        examples: &[
            (
                "Make a key, and a volume under it",
                "kmsfs key generate --output /root/demo.key && kmsfs init volume --kek file:/root/demo.key",
            ),
            (
                "Encrypt it for systemd",
                "kmsfs key generate | systemd-creds encrypt --name=demo - /etc/credstore.encrypted/demo",
            ),
        ],
        exits: &[13],
        see: &["kmsfs init", "systemd-creds(1)"],
    },
    Text {
        command: "kmsfs key test",
        about: "\
It wraps and unwraps a throw-away secret, and prints the key's version, kind, size, permitted operations and expiry, how \
long an unwrap takes, and by how much this machine's clock is off. If it fails, it says what stands in the way.",
        examples: &[
            ("Test a key", "kmsfs key test https://NAME.vault.azure.net/keys/tenant-a"),
            ("Test a volume's key, with the volume's own secret", "kmsfs key test --volume /srv/tenant-a"),
        ],
        exits: &[],
        see: &["kmsfs init", "kmsfs mount"],
    },
];
