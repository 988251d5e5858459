//! A vault of the real program in a directory of its own, and clients for it.

use azure_core::cloud::CustomConfiguration;
use azure_core::error::ErrorKind;
use azure_core::http::{ClientOptions, RequestContent, RetryOptions, Transport};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};
use azure_security_keyvault_keys::models::{EncryptionAlgorithm, KeyOperationParameters};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use reqwest::{Certificate, Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::TempDir;

/// What a test that fails in its own preparation does.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A vault; stopped when it goes out of scope.
pub struct TestVault {
    _parent: TempDir,
    pub directory: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl TestVault {
    /// A directory where no vault was started yet. Its name has what a shell would trip over.
    pub fn new() -> Self {
        let parent = TempDir::new().expect("a temporary directory");
        let directory = parent.path().join("it's a $vault");
        Self { _parent: parent, directory }
    }

    /// A vault that serves.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A vault that was started with these options.
    pub fn start_with(options: &[&str]) -> Self {
        let vault = Self::new();
        vault.ok(&[&["start"], options].concat());
        vault
    }

    /// Runs `kmsfs dev-vault` with these arguments and `--state`.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().expect("the program runs"))
    }

    /// The command of [`TestVault::run`], not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command.arg("dev-vault").args(arguments).arg("--state").arg(&self.directory);
        command
    }

    /// The same, which has to succeed; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {ended:?}");
        ended.stdout.trim_end().to_owned()
    }

    /// The same, which has to fail with this code; returns its error and hint.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: "), "{ended:?}");
        ended.stderr
    }

    /// The status as JSON.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).expect("the status is JSON")
    }

    /// How often an operation was called since the start.
    pub fn calls(&self, operation: &str) -> u64 {
        self.status()["calls"]["calls"][operation].as_u64().unwrap_or(0)
    }

    /// The environment that a POSIX shell has after it read `DIR/env`.
    pub fn environment(&self) -> HashMap<String, String> {
        let output = Command::new("sh")
            .args(["-euc", r#". "$1/env"; env -0"#, "sh"])
            .arg(&self.directory)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .expect("a shell runs");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("the environment is text");
        text.split('\0').filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        let environment = self.environment();
        let (_, port) = environment["KMSFS_DEV_VAULT_URL"].rsplit_once(':').expect("a URL with a port");
        (Ipv4Addr::LOCALHOST, port.parse().expect("a port")).into()
    }

    /// An HTTP client that trusts the vault and nothing else.
    pub fn http(&self) -> reqwest::Client {
        let environment = self.environment();
        let ca = std::fs::read(&environment["KMSFS_CA_FILE"]).expect("the CA file");
        reqwest::Client::builder()
            .tls_certs_only([Certificate::from_pem(&ca).expect("a certificate")])
            .resolve("devvault.localhost", self.address())
            .resolve("localhost", self.address())
            .no_proxy()
            .build()
            .expect("a client")
    }

    /// Microsoft's client, with all of its checks on and without retries.
    pub fn client(&self) -> KeyClient {
        let environment = self.environment();
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host.clone_from(&environment["AZURE_AUTHORITY_HOST"]);
        let options = ClientOptions {
            transport: Some(Transport::new(Arc::new(self.http()))),
            retry: RetryOptions::none(),
            cloud: Some(Arc::new(cloud.into())),
            ..ClientOptions::default()
        };
        let credential = ClientSecretCredential::new(
            &environment["AZURE_TENANT_ID"],
            environment["AZURE_CLIENT_ID"].clone(),
            environment["AZURE_CLIENT_SECRET"].clone().into(),
            Some(ClientSecretCredentialOptions { client_options: options.clone() }),
        )
        .expect("a credential");
        let options = KeyClientOptions { client_options: options, ..KeyClientOptions::default() };
        assert_eq!(options.verify_challenge_resource, Some(true));
        KeyClient::new(&environment["KMSFS_DEV_VAULT_URL"], credential, Some(options)).expect("a client")
    }

    /// A client without a library, to see what is on the wire.
    pub async fn wire(&self) -> Wire {
        let environment = self.environment();
        let http = self.http();
        let (status, token) = request_token(&http, &environment, &environment["AZURE_CLIENT_SECRET"]).await;
        assert_eq!(status, 200, "{token}");
        let token = token["access_token"].as_str().expect("a token").to_owned();
        Wire { http, url: environment["KMSFS_DEV_VAULT_URL"].clone(), token }
    }

    /// The path of a file of the state directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for TestVault {
    fn drop(&mut self) {
        if Path::new(&self.directory).exists() {
            let _ = self.run(&["stop"]);
        }
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Asks for a token with this secret.
pub async fn request_token(
    http: &reqwest::Client,
    environment: &HashMap<String, String>,
    secret: &str,
) -> (u16, Value) {
    let authority = &environment["AZURE_AUTHORITY_HOST"];
    let form: String = azure_core::http::Url::parse_with_params(
        "form:",
        [
            ("grant_type", "client_credentials"),
            ("client_id", &environment["AZURE_CLIENT_ID"]),
            ("client_secret", secret),
            ("scope", &format!("{authority}/.default")),
        ],
    )
    .ok()
    .and_then(|url| url.query().map(str::to_owned))
    .expect("a form");
    let url = format!("{authority}/{}/oauth2/v2.0/token", environment["AZURE_TENANT_ID"]);
    let response = http.post(url).body(form).send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, json_of(response).await)
}

/// Requests with a token, and answers with nothing left out.
pub struct Wire {
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
}

/// One answer.
#[derive(Debug)]
pub struct WireAnswer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Wire {
    /// A request to a path; the API version is added.
    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> WireAnswer {
        self.try_send(method, path, body).await.expect("an answer")
    }

    /// The same, where the connection may fail.
    pub async fn try_send(&self, method: Method, path: &str, body: Option<Value>) -> reqwest::Result<WireAnswer> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{path}{separator}api-version=7.6", self.url);
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(WireAnswer { status, headers, body: json_of(response).await })
    }

    /// GET.
    pub async fn get(&self, path: &str) -> WireAnswer {
        self.send(Method::GET, path, None).await
    }

    /// A cryptographic operation with RSA-OAEP-256.
    pub async fn apply(&self, path: &str, value: &str) -> WireAnswer {
        self.send(Method::POST, path, Some(json!({ "alg": "RSA-OAEP-256", "value": value }))).await
    }

    /// Wraps 32 bytes with the newest version of this key.
    pub async fn wrapped(&self, key: &str) -> String {
        let answer = self.apply(&format!("/keys/{key}/wrapkey"), &"A".repeat(43)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["value"].as_str().expect("a wrapped key").to_owned()
    }

    /// Status, code and inner code of unwrapping this with the newest version.
    pub async fn unwrap(&self, key: &str, wrapped: &str) -> (u16, String, String) {
        self.apply(&format!("/keys/{key}/unwrapkey"), wrapped).await.codes()
    }
}

impl WireAnswer {
    /// Status, code and inner code; empty where there is none.
    pub fn codes(&self) -> (u16, String, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let error = &self.body["error"];
        (self.status.as_u16(), text(&error["code"]), text(&error["innererror"]["code"]))
    }
}

/// The codes of an answer that succeeded.
pub fn success() -> (u16, String, String) {
    refused(200, "", "")
}

/// For comparisons with [`WireAnswer::codes`].
pub fn refused(status: u16, code: &str, inner: &str) -> (u16, String, String) {
    (status, code.into(), inner.into())
}

/// The body of a cryptographic operation for Microsoft's client.
pub fn block(value: &[u8]) -> RequestContent<KeyOperationParameters> {
    KeyOperationParameters {
        algorithm: Some(EncryptionAlgorithm::RsaOaep256),
        value: Some(value.to_vec()),
        ..KeyOperationParameters::default()
    }
    .try_into()
    .expect("a request body")
}

/// Status and inner code of an error of Microsoft's client: the inner code is in the raw body only.
pub fn inner_code(error: &azure_core::Error) -> (u16, String) {
    let ErrorKind::HttpResponse { status, raw_response: Some(raw), .. } = error.kind() else {
        panic!("not an answer of the vault: {error:?}");
    };
    let body: Value = serde_json::from_slice(raw.body()).expect("JSON");
    (u16::from(*status), body["error"]["innererror"]["code"].as_str().unwrap_or_default().to_owned())
}

async fn json_of(response: reqwest::Response) -> Value {
    let bytes = response.bytes().await.expect("a body");
    if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("JSON") }
}
