//! AWS on loopback: MiniStack, which enforces signatures, policies, disabled keys and pending deletion, or Moto, which
//! authenticates what it wraps. Neither does both, so neither is enough: never test a revocation on Moto, it unwraps with
//! disabled keys, and never damage on MiniStack. Both stand behind a front that counts, keeps silent on command, and
//! refuses what another key wrapped, as AWS does and neither of them does.

use super::http::{Answer, Asked, Server};
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const REGION: &str = "eu-west-1";
/// For how long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The identity that may do everything; MiniStack does not look at the signature of this one.
const OWNER: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/kms/aws4_request, SignedHeaders=host, Signature=0";

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    MiniStack,
    Moto,
}

/// How the front misbehaves.
#[derive(Clone, Default)]
pub enum Fault {
    #[default]
    None,
    /// It answers in the server's place.
    Reply(u16, &'static str),
    Cut,
    Silence,
}

#[derive(Default)]
struct Front {
    fault: Fault,
    calls: HashMap<String, u64>,
}

/// A server with a key, an alias of it, and a user who may use it.
pub struct Aws {
    directory: TempDir,
    child: Child,
    front: Arc<Mutex<Front>>,
    server: Server,
    backend: String,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    /// The ARN of the key.
    pub key: String,
    /// Access key and secret of the user.
    pub user: (String, String),
}

impl Aws {
    /// For everything but damage.
    pub fn ministack() -> Self {
        Self::start(Kind::MiniStack)
    }

    /// For damage, and nothing that has to be refused.
    pub fn moto() -> Self {
        Self::start(Kind::Moto)
    }

    fn start(kind: Kind) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Somebody else may take the port before the server does; then it ends at once.
            if let Some(mut aws) = Self::try_start(kind, deadline) {
                aws.key = aws.create_key();
                aws.ok("CreateAlias", json!({ "AliasName": "alias/tenant", "TargetKeyId": aws.key }));
                if kind == Kind::MiniStack {
                    aws.iam("CreateUser", &[("UserName", "kmsfs")]);
                    let reply = aws.iam("CreateAccessKey", &[("UserName", "kmsfs")]);
                    aws.user = (element(&reply, "AccessKeyId"), element(&reply, "SecretAccessKey"));
                    aws.grant();
                }
                return aws;
            }
            assert!(Instant::now() < deadline, "no {kind:?} came up within {PATIENCE:?}");
        }
    }

    fn try_start(kind: Kind, deadline: Instant) -> Option<Self> {
        let directory = TempDir::with_prefix("kmsfs-aws-").expect("a temporary directory");
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|free| free.local_addr()).expect("a port").port();
        let mut command = Command::new(python());
        match kind {
            Kind::MiniStack => {
                command.args(["-m", "ministack"]);
                command.env("GATEWAY_PORT", port.to_string()).env("BIND_HOST", "127.0.0.1").env("AUTH", "true");
                command.env("SERVICES", "kms,iam,sts").env("MINISTACK_REGION", REGION).env("LOG_LEVEL", "WARNING");
                command.env("IOT_MTLS_ENABLED", "false").env("SFTP_ENABLED", "false");
            }
            Kind::Moto => {
                command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
            }
        }
        let log = File::create(directory.path().join("log")).expect("a log");
        command.env("HOME", directory.path()).env("TMPDIR", directory.path()).current_dir(directory.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().expect("the server runs");
        let backend = format!("http://127.0.0.1:{port}");
        let front = Arc::new(Mutex::new(Front::default()));
        // One for each runtime: a connection stands still with the runtime that it began on.
        let client = || reqwest::Client::builder().no_proxy().build().expect("a client");
        let (to, through, behind) = (Arc::clone(&front), client(), backend.clone());
        let server = Server::start(move |asked| pass(asked, Arc::clone(&to), through.clone(), behind.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let user = ("test".to_owned(), "test".to_owned());
        let key = String::new();
        let mut aws = Self { directory, child, front, server, backend, runtime, client: client(), key, user };
        while aws.child.try_wait().expect("its state").is_none() && Instant::now() < deadline {
            if aws.call("ListKeys", &json!({})).is_ok_and(|(status, _)| status == 200) {
                return Some(aws);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{}", std::fs::read_to_string(aws.directory.path().join("log")).unwrap_or_default());
        None
    }

    /// The alias of the key.
    pub fn alias(&self) -> String {
        let (account, _) = self.key.split_once(":key/").expect("the ARN of a key");
        format!("{account}:alias/tenant")
    }

    /// What the program's environment has to have, to be the user.
    pub fn environment(&self) -> HashMap<String, String> {
        self.environment_of(&self.user.0, &self.user.1)
    }

    /// The same for somebody else.
    pub fn environment_of(&self, key: &str, secret: &str) -> HashMap<String, String> {
        [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_ENDPOINT_URL_KMS", &self.server.url())]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// A new symmetric key.
    pub fn create_key(&self) -> String {
        self.create_key_of("SYMMETRIC_DEFAULT")
    }

    /// A new key of this kind.
    pub fn create_key_of(&self, spec: &str) -> String {
        let reply = self.ok("CreateKey", json!({ "KeySpec": spec, "KeyUsage": "ENCRYPT_DECRYPT" }));
        reply["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    /// Points the alias to another key.
    pub fn repoint(&self, key: &str) {
        self.ok("UpdateAlias", json!({ "AliasName": "alias/tenant", "TargetKeyId": key }));
    }

    pub fn disable(&self) {
        self.ok("DisableKey", json!({ "KeyId": self.key }));
    }

    pub fn enable(&self) {
        self.ok("EnableKey", json!({ "KeyId": self.key }));
    }

    pub fn schedule_deletion(&self) {
        self.ok("ScheduleKeyDeletion", json!({ "KeyId": self.key, "PendingWindowInDays": 7 }));
    }

    /// The key is disabled after that, as at AWS.
    pub fn cancel_deletion(&self) {
        self.ok("CancelKeyDeletion", json!({ "KeyId": self.key }));
        self.enable();
    }

    /// Lets the user use every key.
    pub fn grant(&self) {
        let policy = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": ["kms:DescribeKey", "kms:Encrypt", "kms:Decrypt"], "Resource": "*" }] });
        let name = ("UserName", "kmsfs");
        self.iam("PutUserPolicy", &[name, ("PolicyName", "kms"), ("PolicyDocument", &policy.to_string())]);
    }

    pub fn remove_grant(&self) {
        self.iam("DeleteUserPolicy", &[("UserName", "kmsfs"), ("PolicyName", "kms")]);
    }

    /// From now on the front does this.
    pub fn fault(&self, fault: Fault) {
        self.front.lock().expect("the front").fault = fault;
    }

    /// How often the operation was asked for through the front.
    pub fn calls(&self, operation: &str) -> u64 {
        self.front.lock().expect("the front").calls.get(operation).copied().unwrap_or(0)
    }

    /// Stops the server where it is; it answers nothing.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Ends it for good; the front cannot reach it any more.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the server is there");
    }

    fn ok(&self, operation: &str, document: Value) -> Value {
        let (status, reply) = self.call(operation, &document).expect("an answer");
        assert_eq!(status, 200, "{operation} {document}: {reply}");
        serde_json::from_str(&reply).unwrap_or_default()
    }

    fn call(&self, operation: &str, document: &Value) -> reqwest::Result<(u16, String)> {
        let request = self
            .client
            .post(&self.backend)
            .header("authorization", OWNER)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("TrentService.{operation}"))
            .body(document.to_string());
        self.runtime.block_on(async {
            let reply = request.send().await?;
            Ok((reply.status().as_u16(), reply.text().await?))
        })
    }

    fn iam(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).append_pair("Version", "2010-05-08").extend_pairs(parameters);
        let request = self
            .client
            .post(&self.backend)
            .header("authorization", OWNER.replace("/kms/", "/iam/"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.finish());
        let (status, text) = self.runtime.block_on(async {
            let reply = request.send().await.expect("an answer");
            (reply.status().as_u16(), reply.text().await.expect("text"))
        });
        assert_eq!(status, 200, "{action}: {text}");
        text
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The interpreter with the servers in it.
fn python() -> std::ffi::OsString {
    std::env::var_os("KMSFS_TEST_PYTHON").unwrap_or_else(|| {
        let made = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python-env/bin/python");
        assert!(Path::new(made).exists(), "there are no servers of AWS: run scripts/test, or scripts/python-env");
        made.into()
    })
}

fn element(document: &str, name: &str) -> String {
    let (_, rest) = document.split_once(&format!("<{name}>")).expect("the element");
    rest.split('<').next().expect("its content").to_owned()
}

/// What the front does with a request.
async fn pass(asked: Asked, front: Arc<Mutex<Front>>, client: reqwest::Client, backend: String) -> Answer {
    let target = asked.headers.get("x-amz-target").cloned().unwrap_or_default();
    let operation = target.rsplit('.').next().unwrap_or_default();
    let fault = {
        let mut front = front.lock().expect("the front");
        *front.calls.entry(operation.to_owned()).or_default() += 1;
        front.fault.clone()
    };
    match fault {
        Fault::None => {}
        Fault::Reply(status, body) => {
            return Answer::Reply { status, headers: Vec::new(), body: body.as_bytes().to_vec() };
        }
        Fault::Cut => return Answer::Cut,
        Fault::Silence => return Answer::Silence,
    }
    if operation == "Decrypt" && is_of_another_key(&asked.body) {
        let error = json!({ "__type": "IncorrectKeyException", "message": "The key ID in the request does not identify \
                            a CMK that can perform this operation" });
        return Answer::json(400, &error);
    }
    // The host is signed.
    let request = asked
        .headers
        .iter()
        .filter(|(name, _)| *name != "content-length")
        .fold(client.post(backend).body(asked.body), |request, (name, value)| {
            request.header(name.as_str(), value.as_str())
        });
    let Ok(reply) = request.send().await else { return Answer::Cut };
    let status = reply.status().as_u16();
    let headers = ["x-amzn-requestid", "date", "content-type"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), reply.headers().get(name)?.to_str().ok()?.to_owned())))
        .collect();
    match reply.bytes().await {
        Ok(body) => Answer::Reply { status, headers, body: body.to_vec() },
        Err(_) => Answer::Cut,
    }
}

/// Both servers begin a blob with the id of the key that wrapped.
fn is_of_another_key(body: &[u8]) -> bool {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    let blob = BASE64.decode(text("CiphertextBlob").as_bytes()).unwrap_or_default();
    !blob.starts_with(text("KeyId").rsplit('/').next().unwrap_or_default().as_bytes())
}
