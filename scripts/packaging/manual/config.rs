//! The page of tenants' configurations, `kmsfs.toml(5)`: its keys are the options of `kmsfs mount`.

use clap_mangen::roff::{Roff, bold, roman};
use std::error::Error;

const EXAMPLE: &str = include_str!("../tenant.toml");

/// What is no option of the command.
const OWN: [(&str, &str); 4] = [
    ("volume", "The volume's directory: an absolute path. It has to be there."),
    ("mountpoint", "An empty directory in which the files appear: an absolute path. It has to be there."),
    (
        "[credentials]",
        "A table with one key, file: the name of a file in credentials beside the configuration, or an absolute path. Each \
         line of it is NAME=VALUE, a variable that a client of a KMS reads, such as AZURE_CLIENT_SECRET; it has to be \
         readable by its owner only. The process of the mount gets these variables, and none of that kind from whoever \
         starts it.",
    ),
    ("[labels]", "A table of strings that go along with the tenant's metrics and listings."),
];

/// The page in roff.
///
/// # Errors
/// The program has no `mount`, or an option that it does not explain.
pub fn page(root: &clap::Command, date: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mount = root.find_subcommand("mount").ok_or("there is no command 'mount'")?;
    let version = root.get_version().unwrap_or_default();
    let mut roff = Roff::new();
    roff.control("TH", ["KMSFS.TOML", "5", date, &format!("kmsfs {version}"), "kmsfs"]);
    roff.control("SH", ["NAME"])
        .text([roman("kmsfs.toml - configuration of a tenant, whose volume is mounted by its name")]);
    roff.control("SH", ["SYNOPSIS"]).text([roman("/etc/kmsfs/TENANT.toml")]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(
        "Each tenant of a machine has a file, from which 'kmsfs mount --tenant TENANT' and the service kmsfs@TENANT take what \
         to mount where. It is TOML, has to belong to root or to whoever mounts, and nobody else may write to it. A mistake \
         is told with its line. The environment variable KMSFS_CONFIG_DIR names another directory than /etc/kmsfs.",
    )]);
    roff.control("PP", []).text([roman(
        "A tenant's name is 1 to 64 letters, digits and the characters . _ - and begins with a letter or digit.",
    )]);
    roff.control("SH", ["KEYS"]);
    for (name, what) in OWN {
        roff.control("TP", []).text([bold(name)]).text([roman(what)]);
    }
    roff.control("PP", []).text([roman(
        "All others are options of kmsfs-mount(1). An option with a value is a string or a number, or a list if it can be \
         given more than once; one without is true or false:",
    )]);
    for key in kmsfs::cli::tenant_keys() {
        let option = mount.get_arguments().find(|option| option.get_long() == Some(&key.name));
        let help = option.and_then(|option| option.get_long_help().or_else(|| option.get_help()));
        let help = help.ok_or_else(|| format!("kmsfs mount --{} has no help", key.name))?.to_string();
        roff.control("TP", [])
            .text([bold(key.name)])
            .text([roman(help.split_whitespace().collect::<Vec<_>>().join(" "))]);
    }
    roff.control("SH", ["EXAMPLES"]).control("EX", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("EE", []);
    roff.control("SH", ["FILES"]);
    for (name, what) in [
        ("/etc/kmsfs/TENANT.toml", "The configuration of a tenant."),
        ("/etc/kmsfs/credentials/TENANT.env", "Its credentials, if the configuration says so."),
        ("/var/lib/kmsfs/TENANT/", "What is kept of it: whether it is suspended."),
        ("/usr/share/kmsfs/examples/tenant.toml", "The example above."),
    ] {
        roff.control("TP", []).text([bold(name)]).text([roman(what)]);
    }
    roff.control("SH", ["EXIT STATUS"]).text([roman(
        "Commands end with 17 if a configuration is wrong, and with 18 if the tenant is suspended. kmsfs(1) has all the codes.",
    )]);
    roff.control("SH", ["SEE ALSO"]);
    for name in ["kmsfs(1),", "kmsfs-mount(1),", "kmsfs-tenant(1),", "kmsfs-tenant-check(1)"] {
        let (name, section) = name.split_once('(').unwrap_or((name, ""));
        roff.control("BR", [name, &format!("({section}")]);
    }
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}
