//! Signatures by the Standard Webhooks scheme, version 1.

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::hmac;

/// What a secret begins with.
const PREFIX: &str = "whsec_";
/// Bytes that the scheme wants of a secret.
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A secret that a tenant shares.
pub(crate) struct Secret(hmac::Key);

impl Secret {
    /// Reads `whsec_` and base64.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(text.strip_prefix(PREFIX)?).ok()?;
        BYTES.contains(&bytes.len()).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The signature of a message with this id and time (in seconds since 1970).
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let tag = hmac::sign(&self.0, format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", BASE64_STANDARD.encode(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_signed_as_the_scheme_says() {
        // The example of the scheme's own specification.
        let secret = Secret::read("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for bad in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_not base64 at all, is it"] {
            assert!(Secret::read(bad).is_none(), "{bad}");
        }
    }
}
