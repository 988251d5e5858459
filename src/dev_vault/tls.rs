//! The vault's certificates: an authority of its own that is kept, and a server certificate made anew at each start.
//!
//! No wildcard for `*.localhost`: clients match none that stands directly below a top-level name.
//! The authority may vouch for `localhost` and loopback addresses only (RFC 5280 name constraints), so that a machine
//! which trusts it for a test gives nothing else away.

use super::identity::VAULT_HOST;
use super::state::{CA_CERTIFICATE, CA_KEY, StateDir};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The TLS configuration of the server: the kept authority (made if there is none yet) and a fresh certificate.
pub fn server_config(state: &StateDir) -> io::Result<Arc<ServerConfig>> {
    let authority = authority(state)?;
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = server_params()?.signed_by(&key, &authority).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn authority(state: &StateDir) -> io::Result<Issuer<'static, KeyPair>> {
    let key = match std::fs::read_to_string(state.file(CA_KEY)) {
        Ok(pem) if state.file(CA_CERTIFICATE).is_file() => KeyPair::from_pem(&pem).map_err(io::Error::other)?,
        _ => {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            let certificate = authority_params()?.self_signed(&key).map_err(io::Error::other)?;
            state.replace(CA_KEY, 0o600, key.serialize_pem().as_bytes())?;
            state.replace(CA_CERTIFICATE, 0o644, certificate.pem().as_bytes())?;
            key
        }
    };
    Ok(Issuer::new(authority_params()?, key))
}

fn authority_params() -> io::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("kmsfs dev-vault authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName("localhost".into()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(Ipv4Addr::LOCALHOST.octets(), 8)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(Ipv6Addr::LOCALHOST.octets(), 128)),
        ],
        excluded_subtrees: Vec::new(),
    });
    (params.not_before, params.not_after) = validity(20);
    Ok(params)
}

fn server_params() -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(["localhost", VAULT_HOST].map(String::from)).map_err(io::Error::other)?;
    params
        .subject_alt_names
        .extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(SanType::IpAddress));
    params.distinguished_name = named(VAULT_HOST);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = validity(1);
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// From an hour ago (clocks differ) for so many years.
fn validity<T: From<SystemTime>>(years: u32) -> (T, T) {
    let start = SystemTime::now() - Duration::from_secs(3600);
    (start.into(), (start + years * YEAR).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

    #[test]
    fn the_authority_vouches_for_this_machine_only() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let state = StateDir::create(directory.path())?;
        let authority = authority(&state)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(state.file(CA_CERTIFICATE))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build()?;
        for (name, good) in [
            ("localhost", true),
            (VAULT_HOST, true),
            ("127.0.0.1", true),
            ("::1", true),
            ("example.com", false),
            ("notlocalhost", false),
            ("192.0.2.1", false),
        ] {
            let key = KeyPair::generate()?;
            let mut params = server_params()?;
            params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
            let certificate = params.signed_by(&key, &authority)?;
            let name = ServerName::try_from(name)?;
            let verified = verifier.verify_server_cert(certificate.der(), &[], &name, &[], UnixTime::now());
            assert_eq!(verified.is_ok(), good, "{name:?}: {verified:?}");
        }
        Ok(())
    }

    #[test]
    fn the_authority_is_made_once() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let state = StateDir::create(directory.path())?;
        let first = authority(&state)?.key().serialize_der();
        let certificate = std::fs::read(state.file(CA_CERTIFICATE))?;
        assert_eq!(authority(&state)?.key().serialize_der(), first);
        assert_eq!(std::fs::read(state.file(CA_CERTIFICATE))?, certificate);
        Ok(())
    }
}
