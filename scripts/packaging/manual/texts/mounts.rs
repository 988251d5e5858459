//! The commands for mounts.

use super::Text;

pub const TEXTS: &[Text] = &[
    Text {
        command: "kmsfs mount",
        about: "\
The process that serves the mount stays in the background. It asks the KMS for the volume's key every --revalidate. If the \
KMS refuses, it stores what was written, drops every page and name that the kernel has, wipes its keys, and goes on asking: \
programs get EKEYREVOKED until the key is granted again. If the KMS does not answer, nothing happens for --offline-grace; \
then programs get EKEYEXPIRED. After 'kmsfs lock' they get ENOKEY. Damaged or forged data is EIO.

Credentials for the KMS are found where the clouds' own tools find them, in the environment of this command.",
        examples: &[
            ("Mount a volume", "kmsfs mount /srv/tenant-a /data/tenant-a"),
            ("For all users, as mode and owner of the files permit", "kmsfs mount /srv/tenant-a /data/tenant-a -o allow_other"),
            ("Wait for a key that is not granted yet, for a day at most", "kmsfs mount /srv/tenant-a /data/tenant-a --wait=1day"),
            ("Notice old versions that were put back", "kmsfs mount /srv/tenant-a /data/tenant-a --rollback-guard /var/lib/kmsfs/guards"),
            ("As the configuration of a tenant says", "kmsfs mount --tenant acme"),
            ("With the recovery key, to read only", "kmsfs mount /srv/tenant-a /data/tenant-a -o ro --with-recovery-kek"),
        ],
        exits: &[3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 18],
        see: &["kmsfs umount", "kmsfs status", "kmsfs lock", "kmsfs key test", "mount.kmsfs(8)"],
    },
    Text {
        command: "kmsfs umount",
        about: "\
It comes back when everything is stored, the keys are wiped and the process of the mount has ended. The system's own \
umount(8) and fusermount3(1) work as well.",
        examples: &[
            ("Unmount", "kmsfs umount /data/tenant-a"),
            ("Although somebody uses it", "kmsfs umount --lazy /data/tenant-a"),
            ("All mounts", "kmsfs umount --all"),
        ],
        exits: &[4, 10, 13, 17],
        see: &["kmsfs mount", "fusermount3(1)", "umount(8)"],
    },
    Text {
        command: "kmsfs status",
        about: "It says whether the volume is unlocked, draining or locked, why, and for how long the key is good.",
        examples: &[
            ("All mounts of this user", "kmsfs status"),
            ("One mount, for a program", "kmsfs status /data/tenant-a --json"),
        ],
        exits: &[4],
        see: &["kmsfs info", "kmsfs audit show"],
    },
    Text {
        command: "kmsfs lock",
        about: "\
What was written is stored, then everything is dropped and wiped as after a revocation. Programs get ENOKEY until 'kmsfs \
unlock'.",
        examples: &[("Make a mount unreadable now", "kmsfs lock /data/tenant-a")],
        exits: &[4],
        see: &["kmsfs unlock", "kmsfs status"],
    },
    Text {
        command: "kmsfs unlock",
        about: "",
        examples: &[("Make it readable again", "kmsfs unlock /data/tenant-a")],
        exits: &[4, 6, 7, 8, 11, 12, 18],
        see: &["kmsfs lock", "kmsfs tenant resume", "kmsfs status"],
    },
    Text {
        command: "kmsfs scrub",
        about: "\
The process of the mount authenticates every name, link, attribute, header and chunk while programs go on. Interrupting \
this command cancels the scrub.",
        examples: &[
            ("Authenticate everything, at a limited rate", "kmsfs scrub /data/tenant-a --rate 50MiB/s"),
            ("End a scrub, whoever began it", "kmsfs scrub --cancel /data/tenant-a"),
        ],
        exits: &[],
        see: &["kmsfs fsck", "kmsfs status"],
    },
    Text {
        command: "kmsfs rewrap",
        about: "\
Files keep their data keys; what is wrapped anew is what wraps those. It takes about as long as reading the first page of \
every file.",
        examples: &[
            ("After a rotation: everything under the newest version", "kmsfs rewrap /data/tenant-a"),
            ("Under the customer's own key", "kmsfs rewrap /data/tenant-a --kek https://CUSTOMER.vault.azure.net/keys/kmsfs"),
            ("The key is lost: with the recovery key, under a new one", "kmsfs rewrap /srv/tenant-a --with-recovery-kek --kek https://NAME.vault.azure.net/keys/new"),
        ],
        exits: &[],
        see: &["kmsfs info", "kmsfs audit show"],
    },
    Text {
        command: "kmsfs rekey",
        about: "\
A rewrap changes what wraps the data keys; this changes the data keys themselves, and takes as long as reading and writing \
everything.",
        examples: &[
            ("Every file gets a new key", "kmsfs rekey /data/tenant-a"),
            ("Files whose key is older than a year, at a limited rate", "kmsfs rekey /data/tenant-a --older-than 365d --rate 50MiB/s"),
            ("One directory, whose files somebody may have copied the keys of", "kmsfs rekey /data/tenant-a --path projects"),
        ],
        exits: &[],
        see: &["kmsfs rewrap", "kmsfs info"],
    },
    Text {
        command: "kmsfs serve-status",
        about: "\
It serves metrics for Prometheus, answers to probes, and a page for a browser, about all mounts of this user. Alert rules and \
a dashboard for Grafana are in /usr/share/doc/kmsfs.",
        examples: &[
            ("At its own port of this machine", "kmsfs serve-status"),
            ("On a socket, behind a proxy", "kmsfs serve-status --listen unix:/run/kmsfs-status.sock"),
        ],
        exits: &[],
        see: &["kmsfs status", "kmsfs log-level"],
    },
    Text {
        command: "kmsfs log-level",
        about: "It holds until the volume is unmounted.",
        examples: &[
            ("See each answer of the KMS", "kmsfs log-level /data/tenant-a debug"),
            ("As at first", "kmsfs log-level /data/tenant-a info"),
        ],
        exits: &[4],
        see: &["kmsfs status", "kmsfs mount"],
    },
];
