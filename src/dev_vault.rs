//! An embedded server that speaks the Key Vault keys API over TLS on loopback.
