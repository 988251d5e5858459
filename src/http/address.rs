//! Where something is served: nowhere that another machine could reach.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A Unix socket, or a port on loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`, for this user only.
    Unix(PathBuf),
    /// `127.0.0.1:PORT`, `[::1]:PORT`, or `localhost:PORT`. A port of 0 is chosen by the system.
    Loopback(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err("it is unix: and the path of a socket".into()),
                false => Ok(Self::Unix(path.into())),
            };
        }
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        match numeric.as_deref().unwrap_or(text).parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            Ok(address) => Err(format!(
                "{} is not loopback, and this is for this machine only: use 127.0.0.1:{}, and a reverse proxy with TLS \
                 and a login if others have to see it",
                address.ip(),
                address.port()
            )),
            Err(_) => Err("it is unix:PATH, 127.0.0.1:PORT or [::1]:PORT".into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(address) => write!(f, "http://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_can_be_served() {
        for good in ["unix:/run/x.sock", "127.0.0.1:9180", "127.8.8.8:1", "[::1]:9180", "localhost:0"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        for bad in ["", "unix:", "9180", ":9180", "0.0.0.0:9180", "[::]:9180", "192.168.0.1:80", "example.org:80"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!("0.0.0.0:9180".parse::<Address>().unwrap_err().contains("127.0.0.1:9180"));
    }
}
