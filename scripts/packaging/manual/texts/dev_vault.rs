//! The commands for the embedded Key Vault.

use super::Text;

pub const TEXTS: &[Text] = &[
    Text {
        command: "kmsfs dev-vault",
        about: "\
It speaks the Key Vault protocol over TLS on loopback, with real keys, and Microsoft's own clients take it for the real \
one. Its keys lie unprotected in its directory: for tests, not for secrets.",
        examples: &[
            (
                "Start a vault with a key",
                "kmsfs dev-vault start --state /tmp/vault && kmsfs dev-vault key create demo --state /tmp/vault",
            ),
            ("Make a volume under it", ". /tmp/vault/env && kmsfs init volume --kek $KMSFS_DEV_VAULT_URL/keys/demo"),
            ("Take the key away", "kmsfs dev-vault key disable demo --state /tmp/vault"),
        ],
        exits: &[],
        see: &[
            "kmsfs dev-vault start",
            "kmsfs dev-vault key",
            "kmsfs dev-vault fault",
            "kmsfs dev-vault status",
            "kmsfs dev-vault stop",
        ],
    },
    Text {
        command: "kmsfs dev-vault start",
        about: "",
        examples: &[
            (
                "Start it, and let this shell's programs reach it",
                "kmsfs dev-vault start --state /tmp/vault && . /tmp/vault/env",
            ),
            (
                "At a fixed port, with tokens that end soon",
                "kmsfs dev-vault start --state /tmp/vault --listen 127.0.0.1:8443 --token-lifetime 90s",
            ),
        ],
        exits: &[],
        see: &["kmsfs dev-vault stop", "kmsfs dev-vault key create"],
    },
    Text {
        command: "kmsfs dev-vault stop",
        about: "Mounts whose key is in it go on for their --offline-grace.",
        examples: &[("Stop it", "kmsfs dev-vault stop --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault start"],
    },
    Text {
        command: "kmsfs dev-vault status",
        about: "",
        examples: &[
            ("Show it", "kmsfs dev-vault status --state /tmp/vault"),
            ("How often it unwrapped", "kmsfs dev-vault status --state /tmp/vault --json | jq .calls.calls.unwrap"),
        ],
        exits: &[],
        see: &["kmsfs dev-vault start", "kmsfs dev-vault fault"],
    },
    Text {
        command: "kmsfs dev-vault fault",
        about: "",
        examples: &[
            ("Never answer", "kmsfs dev-vault fault hang --state /tmp/vault"),
            (
                "Refuse one key, as if a role were missing",
                "kmsfs dev-vault fault forbid-role --key demo --state /tmp/vault",
            ),
            (
                "Throttle the next ten requests",
                "kmsfs dev-vault fault throttle --count 10 --retry-after 2s --state /tmp/vault",
            ),
            ("Work again", "kmsfs dev-vault fault none --state /tmp/vault"),
        ],
        exits: &[],
        see: &["kmsfs dev-vault status"],
    },
    Text {
        command: "kmsfs dev-vault key",
        about: "",
        examples: &[
            ("Make a key", "kmsfs dev-vault key create demo --state /tmp/vault"),
            (
                "Revoke it, and give it back",
                "kmsfs dev-vault key disable demo --state /tmp/vault && kmsfs dev-vault key enable demo --state /tmp/vault",
            ),
        ],
        exits: &[],
        see: &[
            "kmsfs dev-vault key create",
            "kmsfs dev-vault key disable",
            "kmsfs dev-vault key enable",
            "kmsfs dev-vault key list",
        ],
    },
    Text {
        command: "kmsfs dev-vault key create",
        about: "",
        examples: &[
            ("Make an RSA key", "kmsfs dev-vault key create demo --state /tmp/vault"),
            (
                "Make an AES key, as a Managed HSM has them",
                "kmsfs dev-vault key create demo --kty oct-HSM --state /tmp/vault",
            ),
        ],
        exits: &[],
        see: &["kmsfs dev-vault key rotate", "kmsfs dev-vault key delete"],
    },
    Text {
        command: "kmsfs dev-vault key disable",
        about: "",
        examples: &[
            ("Revoke a key", "kmsfs dev-vault key disable demo --state /tmp/vault"),
            ("Revoke one version", "kmsfs dev-vault key disable demo --version VERSION --state /tmp/vault"),
        ],
        exits: &[],
        see: &["kmsfs dev-vault key enable"],
    },
    Text {
        command: "kmsfs dev-vault key enable",
        about: "",
        examples: &[("Give a key back", "kmsfs dev-vault key enable demo --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key disable"],
    },
    Text {
        command: "kmsfs dev-vault key expire",
        about: "",
        examples: &[
            ("Let a key expire in an hour", "kmsfs dev-vault key expire demo --in 1h --state /tmp/vault"),
            ("Take that back", "kmsfs dev-vault key expire demo --never --state /tmp/vault"),
        ],
        exits: &[],
        see: &["kmsfs dev-vault key disable"],
    },
    Text {
        command: "kmsfs dev-vault key rotate",
        about: "",
        examples: &[("Rotate a key", "kmsfs dev-vault key rotate demo --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key create", "kmsfs rewrap"],
    },
    Text {
        command: "kmsfs dev-vault key delete",
        about: "",
        examples: &[("Delete a key", "kmsfs dev-vault key delete demo --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key recover", "kmsfs dev-vault key purge"],
    },
    Text {
        command: "kmsfs dev-vault key recover",
        about: "",
        examples: &[("Bring a deleted key back", "kmsfs dev-vault key recover demo --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key delete"],
    },
    Text {
        command: "kmsfs dev-vault key purge",
        about: "What it wrapped can never be read again.",
        examples: &[("Destroy a deleted key", "kmsfs dev-vault key purge demo --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key delete"],
    },
    Text {
        command: "kmsfs dev-vault key show",
        about: "",
        examples: &[("List a key's versions", "kmsfs dev-vault key show demo --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key list"],
    },
    Text {
        command: "kmsfs dev-vault key list",
        about: "",
        examples: &[("List the keys", "kmsfs dev-vault key list --state /tmp/vault")],
        exits: &[],
        see: &["kmsfs dev-vault key show"],
    },
];
