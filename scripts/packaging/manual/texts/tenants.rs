//! The commands for tenants.

use super::Text;

pub const TEXTS: &[Text] = &[
    Text {
        command: "kmsfs tenant",
        about: "\
A tenant is a file /etc/kmsfs/TENANT.toml, which says which volume is mounted where and how, and names the file with the \
credentials of that tenant alone.",
        examples: &[
            ("Check all tenants of this machine, and ask for their keys", "kmsfs tenant check --all"),
            ("See how they are doing", "kmsfs tenant list"),
            ("Mount one", "kmsfs mount --tenant acme"),
        ],
        exits: &[],
        see: &["kmsfs tenant list", "kmsfs tenant check", "kmsfs tenant suspend", "kmsfs mount", "kmsfs.toml(5)"],
    },
    Text {
        command: "kmsfs tenant list",
        about: "",
        examples: &[
            ("All tenants", "kmsfs tenant list"),
            (
                "Those that are not as they should be",
                "kmsfs tenant list --json | jq '.[] | select(.state != \"unlocked\")'",
            ),
        ],
        exits: &[17],
        see: &["kmsfs tenant check", "kmsfs status"],
    },
    Text {
        command: "kmsfs tenant check",
        about: "\
It reads configurations and credentials, looks at volumes and mountpoints, finds what two tenants share that they must not, \
and asks for the keys, unless it is told not to.",
        examples: &[
            ("One tenant, before it is mounted for the first time", "kmsfs tenant check acme"),
            ("All of them, without asking any KMS", "kmsfs tenant check --all --offline"),
        ],
        exits: &[3, 4, 6, 7, 8, 11, 12, 17],
        see: &["kmsfs key test", "kmsfs tenant list", "kmsfs.toml(5)"],
    },
    Text {
        command: "kmsfs tenant suspend",
        about: "\
This is the operator's own lock, whatever the owner of the key says. It is noted in the audit log of the volume with its \
reason. Until it is taken back, nothing mounts or unlocks the volume.",
        examples: &[("Suspend a tenant", "kmsfs tenant suspend acme --reason unpaid")],
        exits: &[4, 13, 17],
        see: &["kmsfs tenant resume", "kmsfs lock"],
    },
    Text {
        command: "kmsfs tenant resume",
        about: "",
        examples: &[("Take a suspension back", "kmsfs tenant resume acme")],
        exits: &[4, 6, 7, 8, 13, 17],
        see: &["kmsfs tenant suspend", "kmsfs unlock"],
    },
    Text {
        command: "kmsfs tenant restart",
        about: "The first one that does not come back ends it: whatever is wrong may be wrong for all.",
        examples: &[
            ("After an upgrade: all of them, one after the other", "kmsfs tenant restart --all"),
            ("One of them", "kmsfs tenant restart acme"),
        ],
        exits: &[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18],
        see: &["kmsfs tenant list", "kmsfs mount"],
    },
];
