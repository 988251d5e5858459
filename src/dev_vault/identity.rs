//! Who the vault is: its address, its tenant, and the one application that may call it.
//! Made at the first start and kept, because clients and stored key ids refer to it.

use super::state::{CA_CERTIFICATE, ENVIRONMENT, IDENTITY, StateDir};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// The vault's host name. Its parent domain, `localhost`, is the resource of the challenge: Microsoft's clients refuse
/// a token request for a resource that is not the parent domain of the vault.
pub const VAULT_HOST: &str = "devvault.localhost";

/// How long a token is valid if nothing else is said.
pub const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// What is kept in the state directory about the vault itself.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The loopback address that it serves.
    pub listen: SocketAddr,
    /// The Entra tenant that it plays.
    pub tenant_id: String,
    /// The application that may call it.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Signs the tokens. Kept, so that a client's cached token is still good after a restart.
    pub token_key: String,
    /// Seconds from a token's issue to its end.
    pub token_lifetime: u64,
}

impl Identity {
    /// A new one, with fresh secrets.
    pub fn generate(listen: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listen,
            tenant_id: random_guid()?,
            client_id: random_guid()?,
            client_secret: data_encoding::BASE64URL_NOPAD.encode(&random::<30>()?),
            token_key: data_encoding::BASE64URL_NOPAD.encode(&random::<32>()?),
            token_lifetime: DEFAULT_TOKEN_LIFETIME.as_secs(),
        })
    }

    /// The one that the directory keeps.
    pub fn load(state: &StateDir) -> io::Result<Option<Self>> {
        state.read_json(IDENTITY)
    }

    /// Keeps it, and writes the environment file that goes with it.
    pub fn store(&self, state: &StateDir) -> io::Result<()> {
        state.replace_json(IDENTITY, self)?;
        state.replace(ENVIRONMENT, 0o600, self.environment(state)?.as_bytes())
    }

    /// `https://devvault.localhost:PORT`, without a slash at its end.
    pub fn vault_url(&self) -> String {
        format!("https://{VAULT_HOST}:{}", self.listen.port())
    }

    /// `https://localhost:PORT`: where tokens come from, and the resource that they are for. Python's client compares
    /// the resource with the vault's host *and port*, Rust's compares the hosts.
    pub fn authority(&self) -> String {
        format!("https://localhost:{}", self.listen.port())
    }

    /// A POSIX shell file to source. `SSL_CERT_FILE` is left out on purpose: it would take every other certificate
    /// authority away from all programs of that shell.
    fn environment(&self, state: &StateDir) -> io::Result<String> {
        let ca_file = state.file(CA_CERTIFICATE);
        let ca_file = ca_file.to_str().ok_or_else(|| io::Error::other("the state directory's path is not UTF-8"))?;
        let mut text = String::from("# For clients of `kmsfs dev-vault`: . this file\n");
        for (name, value) in [
            ("KMSFS_DEV_VAULT_URL", self.vault_url().as_str()),
            ("KMSFS_CA_FILE", ca_file),
            ("AZURE_TENANT_ID", &self.tenant_id),
            ("AZURE_CLIENT_ID", &self.client_id),
            ("AZURE_CLIENT_SECRET", &self.client_secret),
            ("AZURE_AUTHORITY_HOST", &self.authority()),
        ] {
            text.push_str(&format!("export {name}={}\n", shell_word(value)));
        }
        Ok(text)
    }
}

/// Random bytes from the operating system.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// A random (version 4) GUID, as RFC 9562 writes it.
pub fn random_guid() -> io::Result<String> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// The text as one word of a POSIX shell, quoted where it has to be.
pub fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._:-".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_word_is_quoted_where_it_has_to_be() {
        assert_eq!(shell_word("/tmp/it's $HOME"), r"'/tmp/it'\''s $HOME'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("https://localhost:1"), "https://localhost:1");
    }

    #[test]
    fn a_guid_says_that_it_is_random() -> io::Result<()> {
        let guid = random_guid()?;
        assert_eq!(guid.len(), 36);
        assert_eq!(&guid[14..15], "4");
        assert!("89ab".contains(&guid[19..20]));
        Ok(())
    }
}
