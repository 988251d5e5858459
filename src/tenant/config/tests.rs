use super::*;

fn keys() -> Vec<Key> {
    let key = |name: &str, takes| Key { name: name.to_owned(), takes };
    vec![
        key("options", Takes::Value),
        key("offline-grace", Takes::Value),
        key("kms-rate", Takes::Value),
        key("wait", Takes::Either),
        key("with-recovery-kek", Takes::Nothing),
    ]
}

fn parse(text: &str) -> Result<Config, Failure> {
    Config::parse(&"acme".parse().unwrap(), Path::new("/etc/kmsfs/acme.toml"), text, &keys())
}

const PLACES: &str = "volume = \"/srv/acme\"\nmountpoint = \"/data/acme\"\n";

#[test]
fn keys_become_arguments_of_the_command() {
    let config = parse(&format!(
        "{PLACES}options = [\"ro\", \"noatime\"]\noffline-grace = \"5m\"\nkms-rate = 7\nwait = true\n\
         with-recovery-kek = false\n[credentials]\nfile = \"acme.env\"\n[labels]\ncustomer = \"Acme \\\"A\\\"\"\n"
    ))
    .unwrap();
    let arguments: Vec<_> = config.options.iter().map(|(_, _, argument)| argument.as_str()).collect();
    assert_eq!(arguments, ["--options=ro", "--options=noatime", "--offline-grace=5m", "--kms-rate=7", "--wait"]);
    assert_eq!(config.line_of("offline-grace"), Some(4));
    assert_eq!((config.volume, config.mountpoint), ("/srv/acme".into(), "/data/acme".into()));
    assert_eq!(config.credentials, Some(("acme.env".into(), 9)));
    assert_eq!(config.labels["customer"], "Acme \"A\"");
}

#[test]
fn every_mistake_is_told_with_its_line_and_a_way_out() {
    for (text, at, what, hint) in [
        ("offline_grace = \"1m\"", 3, "unknown key 'offline_grace'", "'offline-grace'"),
        ("mountpiont = \"/x\"", 3, "unknown key 'mountpiont'", "'mountpoint'"),
        ("zzz = 1", 3, "unknown key 'zzz'", "known are"),
        ("labels = 1", 3, "'labels' is a table", "[labels]"),
        ("[labels]\n\"a b\" = \"x\"", 4, "cannot be called 'a b'", "letters"),
        ("[labels]\na = 1", 4, "'a' is a string", "a = "),
        ("[credentials]", 3, "'file' is missing", "file = "),
        ("[credentials]\nAZURE_CLIENT_SECRET = \"x\"", 4, "unknown key", "never in the configuration"),
        ("[credentials]\nfile = \"../acme.env\"", 4, "absolute path or the name", "credentials/TENANT.env"),
        ("wait = 1.5", 3, "'wait' is a string", "wait = "),
        ("kms-rate = true", 3, "'kms-rate' is a string", "kms-rate = "),
        ("with-recovery-kek = \"yes\"", 3, "true or false", "true"),
        ("options = [1.5]", 3, "a list of strings", "options = "),
        ("volume = \"/again\"", 3, "duplicate key", "TOML"),
        ("= 1", 3, "", "TOML"),
    ] {
        let failure = parse(&format!("{PLACES}{text}\n")).unwrap_err();
        assert_eq!(failure.exit, Exit::Config, "{text}");
        assert!(failure.message.starts_with(&format!("/etc/kmsfs/acme.toml:{at}: ")), "{text}: {}", failure.message);
        assert!(failure.message.contains(what), "{text}: {}", failure.message);
        assert!(failure.hint.as_ref().is_some_and(|said| said.contains(hint)), "{text}: {:?}", failure.hint);
    }
}

#[test]
fn a_volume_and_a_mountpoint_are_needed_and_absolute() {
    assert!(parse("volume = \"/srv/acme\"").unwrap_err().message.contains("'mountpoint' is missing"));
    assert!(parse("").unwrap_err().message.contains("'volume' is missing"));
    assert!(parse("volume = \"srv\"").unwrap_err().message.contains(":1: 'volume' is not an absolute path"));
}
