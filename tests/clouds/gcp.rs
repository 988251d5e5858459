//! A stub of Google Cloud KMS and of Google's token servers: there is no real one to run. It follows the published REST
//! API: versions and their states, permissions, checksums both ways, and wraps with AES-256-GCM.

use super::http::{Answer, Asked, Server};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const RING: &str = "projects/acme/locations/europe-west3/keyRings/kmsfs";
const ACCOUNT: &str = "kmsfs@acme.iam.gserviceaccount.com";
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";

/// How the service misbehaves.
#[derive(Clone, Default)]
pub enum Fault {
    #[default]
    None,
    /// It answers this status, and this body if it is not `null`.
    Reply(u16, Value),
    Cut,
    Silence,
    /// Replies have other checksums than their content.
    Garbled,
    /// Requests arrive with other content than they left with.
    GarbledRequest,
    /// The next so many replies only.
    GarbledFor(u32),
}

#[derive(Clone)]
struct Version {
    key: [u8; 32],
    state: &'static str,
}

struct State {
    keys: HashMap<String, (String, Vec<Version>)>,
    /// From 1.
    primary: HashMap<String, usize>,
    granted: bool,
    may_look: bool,
    fault: Fault,
    calls: HashMap<String, u64>,
    /// Tokens that are good.
    tokens: Vec<String>,
    signer: KeyPair,
    /// What the last request said who pays for it.
    quota_project: Option<String>,
    agent: String,
}

/// The service, with two keys in a ring: `tenant` and `other`; and one that only signs, `signer`.
pub struct Gcp {
    directory: TempDir,
    state: Arc<Mutex<State>>,
    server: Server,
}

impl Gcp {
    pub fn start() -> Self {
        let state = State {
            keys: HashMap::new(),
            primary: HashMap::new(),
            granted: true,
            may_look: true,
            fault: Fault::None,
            calls: HashMap::new(),
            tokens: Vec::new(),
            signer: KeyPair::generate(KeySize::Rsa2048).expect("a key"),
            quota_project: None,
            agent: String::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let server = Server::start(move |asked| {
            let answer = shared.lock().expect("the state").answer(&asked);
            std::future::ready(answer)
        });
        let directory = TempDir::with_prefix("kmsfs-gcp-").expect("a temporary directory");
        let gcp = Self { directory, state, server };
        for (name, purpose) in
            [("tenant", "ENCRYPT_DECRYPT"), ("other", "ENCRYPT_DECRYPT"), ("signer", "ASYMMETRIC_SIGN")]
        {
            gcp.with(|state| {
                let key = (purpose.to_owned(), vec![Version::new()]);
                state.keys.insert(format!("{RING}/cryptoKeys/{name}"), key);
                state.primary.insert(format!("{RING}/cryptoKeys/{name}"), 1);
            });
        }
        gcp
    }

    /// The resource name of a key.
    pub fn key(&self, name: &str) -> String {
        format!("{RING}/cryptoKeys/{name}")
    }

    /// What the program's environment has to have, to be the service account.
    pub fn environment(&self) -> HashMap<String, String> {
        let der: Pkcs8V1Der<'_> = self.state.lock().expect("the state").signer.as_der().expect("a key");
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(der.as_ref()));
        self.environment_of(
            "account.json",
            &json!({ "type": "service_account", "client_email": ACCOUNT, "private_key_id": "1", "private_key": pem,
                "token_uri": self.token_uri() }),
        )
    }

    /// The same with another credentials file.
    pub fn environment_of(&self, file: &str, credentials: &Value) -> HashMap<String, String> {
        let path = self.write(file, credentials.to_string().as_bytes());
        self.environment_without(&[("GOOGLE_APPLICATION_CREDENTIALS", &path.to_string_lossy())])
    }

    /// The same without a credentials file, and with these.
    pub fn environment_without(&self, more: &[(&str, &str)]) -> HashMap<String, String> {
        let endpoint = self.server.url();
        let variables = [("KMSFS_GCP_ENDPOINT", endpoint.as_str())];
        variables.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Writes a file that a test needs.
    pub fn write(&self, file: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(file);
        std::fs::write(&path, content).expect("a file");
        path
    }

    pub fn token_uri(&self) -> String {
        format!("{}/token", self.server.url())
    }

    /// Where a service account can be impersonated.
    pub fn impersonation_uri(&self) -> String {
        format!("{}/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken", self.server.url())
    }

    /// The metadata server's host.
    pub fn metadata_host(&self) -> String {
        format!("127.0.0.1:{}", self.server.port)
    }

    /// Adds a version to `tenant`, and makes it the primary one.
    pub fn rotate(&self) {
        let name = self.key("tenant");
        self.with(|state| {
            let (_, versions) = state.keys.get_mut(&name).expect("the key");
            versions.push(Version::new());
            state.primary.insert(name, versions.len());
        });
    }

    /// Puts all versions of `tenant` into this state.
    pub fn set(&self, to: &'static str) {
        let name = self.key("tenant");
        self.with(|state| state.keys.get_mut(&name).expect("the key").1.iter_mut().for_each(|v| v.state = to));
    }

    /// Whether the identity may use the keys.
    pub fn grant(&self, granted: bool) {
        self.with(|state| state.granted = granted);
    }

    /// Whether the identity may look at keys, besides using them.
    pub fn let_look(&self, may_look: bool) {
        self.with(|state| state.may_look = may_look);
    }

    pub fn fault(&self, fault: Fault) {
        self.with(|state| state.fault = fault);
    }

    /// All tokens that were given out are worth nothing any more.
    pub fn revoke_tokens(&self) {
        self.with(|state| state.tokens.clear());
    }

    /// How often `encrypt`, `decrypt`, `get` or `token` was asked for.
    pub fn calls(&self, what: &str) -> u64 {
        self.with(|state| state.calls.get(what).copied().unwrap_or(0))
    }

    pub fn quota_project(&self) -> Option<String> {
        self.with(|state| state.quota_project.clone())
    }

    pub fn agent(&self) -> String {
        self.with(|state| state.agent.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("the state"))
    }
}

impl Version {
    fn new() -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("randomness");
        Self { key, state: "ENABLED" }
    }
}

fn error(status: u16, word: &str, message: &str) -> Answer {
    Answer::json(status, &json!({ "error": { "code": status, "status": word, "message": message } }))
}

impl State {
    fn count(&mut self, what: &str) {
        *self.calls.entry(what.to_owned()).or_default() += 1;
    }

    fn answer(&mut self, asked: &Asked) -> Answer {
        match asked.path.as_str() {
            "/token" => return self.grant_token(asked),
            "/computeMetadata/v1/instance/service-accounts/default/token" => {
                self.count("token");
                return match asked.headers.get("metadata-flavor").map(String::as_str) {
                    Some("Google") => self.new_token(),
                    _ => error(403, "PERMISSION_DENIED", "Missing Metadata-Flavor:Google header."),
                };
            }
            _ => {}
        }
        let bearer = asked.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let known = bearer.is_some_and(|token| self.tokens.iter().any(|good| good == token));
        if asked.path.ends_with(":generateAccessToken") {
            self.count("impersonate");
            let Some(token) = bearer.filter(|_| known) else { return error(401, "UNAUTHENTICATED", "no token") };
            let document: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
            assert_eq!(document["scope"], json!([SCOPE]));
            let token = format!("{token}-impersonated");
            self.tokens.push(token.clone());
            return Answer::json(200, &json!({ "accessToken": token, "expireTime": "2100-01-01T00:00:00Z" }));
        }
        let Some(path) = asked.path.strip_prefix("/v1/") else { return error(404, "NOT_FOUND", "no such path") };
        let (name, operation) = path.rsplit_once(':').unwrap_or((path, "get"));
        self.count(operation);
        self.quota_project = asked.headers.get("x-goog-user-project").cloned();
        self.agent = asked.headers.get("user-agent").cloned().unwrap_or_default();
        match self.fault.clone() {
            Fault::Reply(status, Value::Null) => {
                return Answer::Reply { status, headers: Vec::new(), body: b"<html>".to_vec() };
            }
            Fault::Reply(status, document) => return Answer::json(status, &document),
            Fault::Cut => return Answer::Cut,
            Fault::Silence => return Answer::Silence,
            Fault::None | Fault::Garbled | Fault::GarbledRequest | Fault::GarbledFor(_) => {}
        }
        if !known {
            return error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.");
        }
        if !self.granted || (operation == "get" && !self.may_look) {
            let message = format!("Permission denied on resource '{name}' (or it may not exist).");
            return error(403, "PERMISSION_DENIED", &message);
        }
        self.use_key(name, operation, &asked.body)
    }

    fn use_key(&mut self, name: &str, operation: &str, body: &[u8]) -> Answer {
        let (key_name, number) = match name.split_once("/cryptoKeyVersions/") {
            Some((key, number)) => (key, number.parse::<usize>().ok()),
            None => (name, None),
        };
        let Some((purpose, versions)) = self.keys.get(key_name).cloned() else {
            return error(404, "NOT_FOUND", &format!("CryptoKey {key_name} not found."));
        };
        let primary = self.primary[key_name];
        let document = |number: usize| {
            json!({ "name": format!("{key_name}/cryptoKeyVersions/{number}"), "state": versions[number - 1].state,
                "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION", "protectionLevel": "SOFTWARE" })
        };
        let existing = |number: &usize| (1..=versions.len()).contains(number);
        if operation == "get" {
            return match number {
                Some(number) if existing(&number) => Answer::json(200, &document(number)),
                Some(_) => error(404, "NOT_FOUND", "CryptoKeyVersion not found."),
                None => {
                    let key = json!({ "name": key_name, "purpose": purpose, "primary": document(primary) });
                    Answer::json(200, &key)
                }
            };
        }
        if purpose != "ENCRYPT_DECRYPT" {
            let message = format!("{key_name} has purpose {purpose}, which does not support this operation.");
            return error(400, "INVALID_ARGUMENT", &message);
        }
        let mut request = Request::read(body);
        if matches!(self.fault, Fault::GarbledRequest) {
            request.aad.push(0);
        }
        if let Some(field) = request.mismatch() {
            let message = format!("The checksum in field {field} did not match the data.");
            return error(400, "INVALID_ARGUMENT", &message);
        }
        let skew = match &mut self.fault {
            Fault::Garbled => 1,
            Fault::GarbledFor(left) if *left > 0 => {
                *left -= 1;
                1
            }
            _ => 0,
        };
        let disabled = |number: usize| {
            let message = format!(
                "{key_name}/cryptoKeyVersions/{number} is not enabled, current state is: {}.",
                versions[number - 1].state
            );
            error(400, "FAILED_PRECONDITION", &message)
        };
        if operation == "encrypt" {
            let number = number.unwrap_or(primary);
            if !existing(&number) {
                return error(404, "NOT_FOUND", "CryptoKeyVersion not found.");
            }
            if versions[number - 1].state != "ENABLED" {
                return disabled(number);
            }
            let blob = seal(&versions[number - 1].key, number, &request.content, &request.aad);
            return Answer::json(
                200,
                &json!({ "name": format!("{key_name}/cryptoKeyVersions/{number}"), "ciphertext": BASE64.encode(&blob),
                    "ciphertextCrc32c": (crc32c::crc32c(&blob) ^ skew).to_string(), "protectionLevel": "SOFTWARE",
                    "verifiedPlaintextCrc32c": request.content_crc.is_some(),
                    "verifiedAdditionalAuthenticatedDataCrc32c": request.aad_crc.is_some() }),
            );
        }
        let invalid = || error(400, "INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.");
        let number = request.content.first().map_or(0, |number| usize::from(*number));
        if !existing(&number) {
            return invalid();
        }
        if versions[number - 1].state != "ENABLED" {
            return disabled(number);
        }
        let Some(plaintext) = open(&versions[number - 1].key, &request.content, &request.aad) else { return invalid() };
        Answer::json(
            200,
            &json!({ "plaintext": BASE64.encode(&plaintext), "usedPrimary": number == primary,
                "plaintextCrc32c": (crc32c::crc32c(&plaintext) ^ skew).to_string(), "protectionLevel": "SOFTWARE" }),
        )
    }

    fn grant_token(&mut self, asked: &Asked) -> Answer {
        self.count("token");
        let form: HashMap<String, String> = url::form_urlencoded::parse(&asked.body).into_owned().collect();
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let good = match field("grant_type") {
            "urn:ietf:params:oauth:grant-type:jwt-bearer" => self.is_own_grant(field("assertion")),
            "refresh_token" => {
                (field("client_id"), field("client_secret"), field("refresh_token")) == ("client", "secret", "refresh")
            }
            "urn:ietf:params:oauth:grant-type:token-exchange" => {
                field("subject_token") == "workload" && field("audience") == "//iam.googleapis.com/pool"
            }
            other => panic!("an unknown grant: {other}"),
        };
        if !good {
            let refusal = json!({ "error": "invalid_grant", "error_description": "Invalid grant: account not found" });
            return Answer::json(400, &refusal);
        }
        self.new_token()
    }

    fn new_token(&mut self) -> Answer {
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("randomness");
        let token = BASE64URL_NOPAD.encode(&random);
        self.tokens.push(token.clone());
        Answer::json(200, &json!({ "access_token": token, "expires_in": 3599, "token_type": "Bearer" }))
    }

    fn is_own_grant(&self, grant: &str) -> bool {
        let Some((signed, signature)) = grant.rsplit_once('.') else { return false };
        let Ok(signature) = BASE64URL_NOPAD.decode(signature.as_bytes()) else { return false };
        let claims = signed.split_once('.').and_then(|(_, claims)| BASE64URL_NOPAD.decode(claims.as_bytes()).ok());
        let claims: Value = serde_json::from_slice(&claims.unwrap_or_default()).unwrap_or_default();
        claims["iss"] == ACCOUNT
            && claims["scope"] == SCOPE
            && UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.signer.public_key())
                .verify(signed.as_bytes(), &signature)
                .is_ok()
    }
}

/// The body of an `encrypt` or a `decrypt`.
struct Request {
    field: &'static str,
    content: Vec<u8>,
    content_crc: Option<u32>,
    aad: Vec<u8>,
    aad_crc: Option<u32>,
}

impl Request {
    fn read(body: &[u8]) -> Self {
        let document: Value = serde_json::from_slice(body).expect("JSON");
        let field = if document.get("plaintext").is_some() { "plaintext" } else { "ciphertext" };
        let bytes = |name: &str| BASE64.decode(document[name].as_str().unwrap_or_default().as_bytes()).expect("base64");
        let crc = |name: &str| document[format!("{name}Crc32c")].as_str().map(|text| text.parse().expect("a number"));
        Self {
            field,
            content: bytes(field),
            content_crc: crc(field),
            aad: bytes("additionalAuthenticatedData"),
            aad_crc: crc("additionalAuthenticatedData"),
        }
    }

    /// The field whose checksum does not fit.
    fn mismatch(&self) -> Option<String> {
        let wrong = |crc: Option<u32>, bytes: &[u8]| crc.is_some_and(|crc| crc != crc32c::crc32c(bytes));
        if wrong(self.content_crc, &self.content) {
            return Some(format!("{}_crc32c", self.field));
        }
        wrong(self.aad_crc, &self.aad).then(|| "additional_authenticated_data_crc32c".to_owned())
    }
}

/// The version's number, a nonce, and what AES-256-GCM makes of it.
fn seal(key: &[u8; 32], number: usize, plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce).expect("randomness");
    let cipher = Aes256Gcm::new(key.into());
    let sealed = cipher.encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad }).expect("a ciphertext");
    [&[u8::try_from(number).expect("few versions")][..], &nonce[..], &sealed].concat()
}

fn open(key: &[u8; 32], blob: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = blob.get(1..)?.split_first_chunk::<12>()?;
    let cipher = Aes256Gcm::new(key.into());
    cipher.decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad }).ok()
}
