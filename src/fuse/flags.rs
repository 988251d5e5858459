//! The options of `mount -o`: those that change how the kernel is served, and those that are for others.

use serde::{Deserialize, Serialize};

/// The options of `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Other users can use the mount, with their own permissions.
    pub allow_other: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Setuid and setgid bits work.
    pub suid: bool,
    /// Programs cannot be started.
    pub no_exec: bool,
    /// Access times are not kept.
    pub no_atime: bool,
    /// Nothing of a file's content is kept in the page cache.
    pub direct_io: bool,
    /// The mountpoint may have something in it.
    pub nonempty: bool,
}

/// The options that mean nothing here but are for other programs (`mount`, systemd) in the same list.
const IGNORED: [&str; 8] = ["diratime", "nodiratime", "strictatime", "lazytime", "async", "auto", "noauto", "nofail"];
const KNOWN: [&str; 8] = ["ro", "allow_other", "dev", "suid", "noexec", "noatime", "direct_io", "nonempty"];

impl Flags {
    /// Reads the lists of all `-o`, later ones winning.
    ///
    /// # Errors
    /// The first option that is not known, with what it may have meant.
    pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut flags = Self::default();
        for option in lists.into_iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
            match option {
                "ro" => flags.read_only = true,
                "rw" => flags.read_only = false,
                "allow_other" => flags.allow_other = true,
                "dev" => flags.dev = true,
                "nodev" => flags.dev = false,
                "suid" => flags.suid = true,
                "nosuid" => flags.suid = false,
                "noexec" => flags.no_exec = true,
                "exec" => flags.no_exec = false,
                "noatime" => flags.no_atime = true,
                "atime" => flags.no_atime = false,
                "direct_io" => flags.direct_io = true,
                "nonempty" => flags.nonempty = true,
                "_netdev"
                | "user"
                | "users"
                | "nouser"
                | "defaults"
                | "default_permissions"
                | "relatime"
                | "norelatime" => (),
                _ if IGNORED.contains(&option) || option.starts_with("x-") || option.starts_with("comment=") => (),
                _ => {
                    return Err(format!("unknown mount option '{option}'; known are {}", KNOWN.join(", ")));
                }
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_order_and_unknown_options_are_named() {
        let flags = Flags::parse(["ro,allow_other", "rw,x-systemd.automount,_netdev,,dev"]).unwrap();
        assert_eq!(flags, Flags { allow_other: true, dev: true, ..Flags::default() });
        assert!(Flags::parse(["allow-other"]).unwrap_err().contains("'allow-other'"));
    }
}
