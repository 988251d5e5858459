//! What is counted, as Prometheus reads it: a real one, from real mounts. Also the files that operators take from here.

use crate::harness::{Ended, Mount, Volume, bytes, number, until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Prometheus stores what it has when it is asked to end; nobody wants that here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn exchange(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

fn of_socket(socket: &Path, path: &str) -> (u16, String) {
    exchange(UnixStream::connect(socket).expect("a socket"), path)
}

fn of_port(port: u16, path: &str) -> (u16, String) {
    exchange(TcpStream::connect(("127.0.0.1", port)).expect("a port"), path)
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The value of the only line that begins like this.
fn value(text: &str, begin: &str) -> f64 {
    let mut lines = text.lines().filter(|line| line.starts_with(begin));
    let line = lines.next().unwrap_or_else(|| panic!("no {begin} in {text}"));
    assert!(lines.next().is_none(), "more than one {begin}");
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

fn promtool(arguments: &[&str], input: &str) -> Ended {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool (Debian: prometheus) is installed");
    child.stdin.take().expect("an input").write_all(input.as_bytes()).expect("it reads");
    Ended::from(child.wait_with_output().expect("it ends"))
}

fn file_of_operators(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// `kmsfs serve-status` on a port that the system chose.
fn serve_status(volume: &Volume) -> (Process, u16) {
    let mut command = volume.command(&["serve-status", "--listen", "127.0.0.1:0"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let mut errors = BufReader::new(child.stderr.take().expect("its errors"));
    errors.read_line(&mut line).expect("a line");
    let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
    (Process(child), port.unwrap_or_else(|| panic!("no port in {line}")))
}

#[test]
fn a_mount_counts_what_happens_to_it_and_promtool_finds_nothing_wrong() {
    let volume = Volume::new();
    let socket = volume.file("metrics.sock");
    let address = format!("unix:{}", socket.display());
    let mount = volume.mount(&["--metrics", &address, "--label", "cost-centre=4711 \"a\\b\"\n"]);
    fs::write(mount.at("file"), bytes(1, 10_000)).expect("a file");
    fs::File::open(mount.at("file")).and_then(|file| file.sync_all()).expect("a sync");
    assert_eq!(number(fs::metadata(mount.at("missing"))), libc::ENOENT);
    let (status, text) = of_socket(&socket, "/metrics");
    assert_eq!(status, 200);
    let checked = promtool(&["check", "metrics"], &text);
    assert!(checked.code == 0 && checked.stderr.is_empty() && checked.stdout.is_empty(), "{checked:?}");
    let id = mount.status()["volume_id"].as_str().expect("an id").to_owned();
    let labels = format!("{{mountpoint=\"{0}\",tenant=\"\",volume=\"{id}\"", mount.at("").display());
    // In whatever order the library writes them.
    let labelled = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("no {name}"));
        for label in labels.trim_start_matches('{').split(',') {
            assert!(line.contains(label), "{label} in {line}");
        }
    };
    labelled("kmsfs_ready");
    assert!(text.contains(r#"label_cost_centre="4711 \"a\\b\"\n""#), "{text}");
    assert_eq!(value(&text, "kmsfs_ready"), 1.0);
    assert!(value(&text, "kmsfs_written_bytes_total") >= 10_000.0);
    assert!(value(&text, "kmsfs_memory_resident_bytes") > 1e6);
    assert!(value(&text, "kmsfs_journal_capacity_bytes") > value(&text, "kmsfs_journal_bytes"));
    assert!(text.lines().any(|line| line.starts_with("kmsfs_errors_total{") && line.contains("errno=\"ENOENT\"")));
    let created = |line: &&str| {
        line.contains("operation=\"create\"") && line.starts_with("kmsfs_operation_duration_seconds_count")
    };
    assert!(text.lines().find(created).is_some_and(|line| line.ends_with(" 1")), "{text}");
    for name in [
        "kmsfs_kms_calls_total",
        "kmsfs_kms_throttled_total",
        "kmsfs_envelope_cache_hits_total",
        "kmsfs_dirty_bytes",
        "kmsfs_lost_bytes_total",
        "kmsfs_lock_duration_seconds_count",
        "kmsfs_lease_age_seconds",
        "kmsfs_failed_chunks_total",
    ] {
        labelled(name);
    }
    assert_eq!((of_socket(&socket, "/livez").0, of_socket(&socket, "/readyz").0), (200, 200));
    assert_eq!(of_socket(&socket, "/").0, 404);
    mount.volume().ok(&["lock", mount.at("").to_str().expect("UTF-8")]);
    let (status, why) = of_socket(&socket, "/readyz");
    assert!(status == 503 && why.contains("locked (operator)"), "{status} {why}");
    let (_, text) = of_socket(&socket, "/metrics");
    assert_eq!(value(&text, "kmsfs_ready"), 0.0);
    assert_eq!(value(&text, "kmsfs_lock_duration_seconds_count"), 1.0);
    mount.unmount();
    assert!(UnixStream::connect(&socket).is_err());
}

#[test]
fn a_chunk_that_does_not_authenticate_is_counted() {
    let mount = Mount::new();
    fs::write(mount.at("file"), bytes(1, 10_000)).expect("a file");
    let volume = mount.unmount();
    let tree = volume.path().join("tree");
    let stored = fs::read_dir(tree).expect("the tree").flatten().map(|entry| entry.path()).find(|path| path.is_file());
    let stored = stored.expect("a stored file");
    let mut content = fs::read(&stored).expect("its bytes");
    let last = content.len() - 1;
    content[last] ^= 1;
    fs::write(&stored, content).expect("damage");
    let socket = volume.file("metrics.sock");
    let mount = volume.mount(&["--metrics", &format!("unix:{}", socket.display())]);
    assert_eq!(number(fs::read(mount.at("file"))), libc::EIO);
    let text = of_socket(&socket, "/metrics").1;
    assert!(value(&text, "kmsfs_failed_chunks_total") >= 1.0 && value(&text, "kmsfs_damage_total") >= 1.0, "{text}");
}

#[test]
fn prometheus_scrapes_all_mounts_of_the_host_and_answers_queries_about_them() {
    let (one, other) = (Mount::new(), Mount::new());
    fs::write(one.at("file"), bytes(1, 100_000)).expect("a file");
    let (_server, port) = serve_status(one.volume());
    assert_eq!(of_port(port, "/livez").0, 200);
    let own = free_port();
    let volume = one.volume();
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
         scrape_configs: [{{job_name: kmsfs, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n",
        file_of_operators("prometheus/kmsfs.rules.yml").display()
    );
    let path = volume.file("prometheus.yml");
    fs::write(&path, config).expect("a configuration");
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", path.display()))
        .arg(format!("--storage.tsdb.path={}", volume.file("tsdb").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{own}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is installed");
    let _prometheus = Process(child);
    until("Prometheus answers", || TcpStream::connect(("127.0.0.1", own)).is_ok());
    let query = |query: &str| -> Vec<(String, f64)> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let (status, body) = of_port(own, &format!("/api/v1/query?query={escaped}"));
        // It says so while it starts.
        if status != 200 {
            return Vec::new();
        }
        let start = body.find('{').unwrap_or_default();
        let end = body.rfind('}').map_or(body.len(), |end| end + 1);
        let answer: Value = serde_json::from_str(&body[start..end]).expect("JSON");
        let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let result = |result: &Value| {
            let place = result["metric"]["mountpoint"].as_str().unwrap_or_default().to_owned();
            (place, result["value"][1].as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN))
        };
        results.iter().map(result).collect()
    };
    let places = [one.at("").display().to_string(), other.at("").display().to_string()];
    let ready = |query: &dyn Fn(&str) -> Vec<(String, f64)>, place: &str| {
        query("kmsfs_ready").iter().any(|(at, value)| at == place && *value == 1.0)
    };
    until("both mounts are ready", || places.iter().all(|place| ready(&query, place)));
    let written = query(&format!("kmsfs_written_bytes_total{{mountpoint=\"{}\"}} >= 100000", places[0]));
    assert_eq!(written.len(), 1, "{written:?}");
    let quantile = format!(
        "histogram_quantile(0.99, kmsfs_operation_duration_seconds_bucket{{operation=\"create\",mountpoint=\"{}\"}}) > 0",
        places[0]
    );
    assert_eq!(query(&quantile).len(), 1);
    other.volume().ok(&["lock", &places[1]]);
    until("the alert waits for its time", || {
        query("ALERTS{alertname=\"KmsfsNotReady\"}").iter().any(|(at, _)| *at == places[1])
    });
    assert!(of_port(port, "/readyz").0 == 503);
    assert!(ready(&query, &places[0]));
}

#[test]
fn the_alerts_are_silent_before_their_causes_and_fire_after_them() {
    let rules = file_of_operators("prometheus/kmsfs.rules.yml");
    let tests = file_of_operators("prometheus/kmsfs.tests.yml");
    for (what, file) in [("check", &rules), ("test", &tests)] {
        let ended = promtool(&[what, "rules", file.to_str().expect("UTF-8")], "");
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let text = fs::read_to_string(rules).expect("the rules");
    let tested = fs::read_to_string(tests).expect("their tests");
    let manual = include_str!("../../src/manual/monitoring.md");
    for alert in text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tested.contains(&format!("- name: {alert}\n")), "{alert} is not tested");
        assert!(manual.contains(&format!("`{alert}`")), "{alert} is not in the manual");
    }
}

#[test]
fn whatever_a_dashboard_or_an_alert_asks_for_is_there() {
    let mount = Mount::new();
    fs::write(mount.at("file"), "x").expect("a file");
    assert_eq!(number(fs::metadata(mount.at("missing"))), libc::ENOENT);
    let (_server, port) = serve_status(mount.volume());
    let text = of_port(port, "/metrics").1;
    // Those that a mount without a guard, or without a rewrap, does not have.
    let elsewhere = ["kmsfs_rollback_suspected", "kmsfs_files_by_key"];
    let manual = include_str!("../../src/manual/monitoring.md");
    for file in ["prometheus/kmsfs.rules.yml", "grafana/kmsfs.json"] {
        let asked = fs::read_to_string(file_of_operators(file)).expect("a file");
        let words = asked.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let mut names: Vec<_> = words.filter(|word| word.starts_with("kmsfs_")).collect();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            assert!(elsewhere.contains(&name) || text.contains(&format!("\n{name}")), "{file}: {name}");
        }
    }
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().expect("a name");
        assert!(manual.contains(&format!("`{name}")), "{name} is not in the manual");
    }
    let dashboard = fs::read_to_string(file_of_operators("grafana/kmsfs.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 8));
}

#[test]
fn addresses_that_others_could_reach_are_refused_and_so_are_those_that_are_taken() {
    let volume = Volume::new();
    for address in ["0.0.0.0:9180", "9180", "192.168.1.1:80"] {
        let ended = volume.run(&["serve-status", "--listen", address]);
        assert!(ended.code == 2 && ended.stderr.contains("127.0.0.1:"), "{address}: {ended:?}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let error = volume.mount_fails(&["--metrics", &address], 1);
    assert!(error.contains("serve-status"), "{error}");
    volume.fails(&["serve-status", "--listen", &address], 1);
}
