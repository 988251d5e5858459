//! Signs a request for AWS KMS (Signature Version 4), with AWS's own crate. No I/O.
//! Invariant: what is signed is what is sent: method, path, host, content type, target and body.

use crate::kms::rest::Request;
use crate::kms::{KmsError, KmsErrorKind};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningParams, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::header::HeaderName;
use reqwest::{Method, Url};
use std::time::SystemTime;

/// JSON 1.1, as AWS calls its protocol.
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "x-amz-target";

/// A signed POST of this document for this operation.
///
/// # Errors
/// [`KmsErrorKind::Misconfigured`] for a URL or credentials that cannot be signed.
pub(super) fn post(
    url: &Url,
    operation: &str,
    body: Vec<u8>,
    region: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Request, KmsError> {
    let wrong = |what: &dyn std::error::Error| {
        KmsError::new(KmsErrorKind::Misconfigured, format!("a request to {url} cannot be signed: {what}"))
    };
    let target = format!("TrentService.{operation}");
    let identity = credentials.clone().into();
    let params: SigningParams<'_> = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kms")
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| wrong(&error))?
        .into();
    let headers = [("content-type", CONTENT_TYPE), (TARGET, target.as_str())];
    let signable = SignableRequest::new("POST", url.as_str(), headers.into_iter(), SignableBody::Bytes(&body))
        .map_err(|error| wrong(&error))?;
    let (instructions, _) = sign(signable, &params).map_err(|error| wrong(&error))?.into_parts();
    let (signed, _) = instructions.into_parts();
    let request = Request::new(Method::POST, url.clone())
        .header(HeaderName::from_static(TARGET), &target)
        .body(CONTENT_TYPE, body);
    Ok(signed
        .iter()
        .fold(request, |request, header| request.header(HeaderName::from_static(header.name()), header.value())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// 30 August 2015, 12:36:00 UTC: the time of AWS's own examples.
    const TIME: Duration = Duration::from_secs(1_440_938_160);

    /// What an independent implementation (botocore 1.43) signs.
    #[test]
    fn a_signature_is_the_one_that_another_implementation_makes() {
        let url = Url::parse("https://kms.us-east-1.amazonaws.com/").unwrap();
        let sign = |token: Option<&str>, url: &Url| {
            let keys = Credentials::new(
                "AKIDEXAMPLE",
                "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
                token.map(str::to_owned),
                None,
                "test",
            );
            post(url, "Decrypt", br#"{"KeyId":"k"}"#.to_vec(), "us-east-1", &keys, UNIX_EPOCH + TIME).unwrap()
        };
        let request = sign(None, &url);
        assert_eq!(request.header_value("x-amz-date"), Some("20150830T123600Z"));
        assert_eq!(request.header_value("x-amz-target"), Some("TrentService.Decrypt"));
        assert_eq!(request.header_value("content-type"), Some(CONTENT_TYPE));
        assert_eq!(request.header_value("authorization"), Some(SIGNED));
        let request = sign(Some("TOKEN"), &url);
        assert_eq!(request.header_value("x-amz-security-token"), Some("TOKEN"));
        assert_eq!(request.header_value("authorization"), Some(SIGNED_WITH_TOKEN));
        // A port that is not the usual one is part of the host.
        let request = sign(None, &Url::parse("http://127.0.0.1:4566/").unwrap());
        assert_eq!(request.header_value("authorization"), Some(SIGNED_ON_A_PORT));
    }

    const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=3fbf6d4bba8d994444baef208016abf6464df0527beebecc2263516c5f62dad3";
    const SIGNED_WITH_TOKEN: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature=2d1325c0877de4baa18820e41dae5351703193e135be3caa5af328d1909393b0";
    const SIGNED_ON_A_PORT: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=62b5a09c5ae9fa3ebe7261d1f9d601c97e14302c4263be012ac98e4cf7a7d9d2";
}
