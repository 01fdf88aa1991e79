//! What a tenant's role logs in with.
//!
//! The password is derived, so that no host has to keep it, and PostgreSQL is told a verifier of it only, so
//! that it is in none of the server's logs.

use std::fmt::Write as _;

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// One round: rounds make guesses at a password slow, and this one has 256 bits. They would make each new
/// connection slow, too.
const ITERATIONS: u32 = 1;

pub fn of_role(key: &[u8; 32], role: &str) -> String {
    hex(&authenticate(key, &[role.as_bytes()]))
}

/// A number that only hosts with the same key know, for an advisory lock.
pub fn lock_of_role(key: &[u8; 32], role: &str) -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = authenticate(key, &[b"lock ", role.as_bytes()]);
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The verifier of RFC 5803 as `alter role … password` takes it. The salt is the role's own, and no secret.
pub fn verifier(password: &str, role: &str) -> String {
    let [salt @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = <[u8; 32]>::from(Sha256::digest(role));
    let salted = authenticate(password.as_bytes(), &[&salt, &ITERATIONS.to_be_bytes()]);
    let stored_key = Sha256::digest(authenticate(&salted, &[b"Client Key"]));
    let server_key = authenticate(&salted, &[b"Server Key"]);
    format!("SCRAM-SHA-256${ITERATIONS}:{}${}:{}", base64(&salt), base64(&stored_key), base64(&server_key))
}

fn authenticate(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    // A key of any length is good; there is no error to be had here.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = DIGITS.get((bits >> shift & 63) as usize).copied().unwrap_or(b'=');
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_rfc_4648_says() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn a_password_belongs_to_one_role_and_one_key() {
        let password = of_role(&[1; 32], "stoa_orders");
        assert_eq!(password.len(), 64);
        assert_eq!(password, of_role(&[1; 32], "stoa_orders"));
        assert_ne!(password, of_role(&[1; 32], "stoa_billing"));
        assert_ne!(password, of_role(&[2; 32], "stoa_orders"));
    }

    #[test]
    fn the_verifier_does_not_tell_the_password() {
        let password = of_role(&[1; 32], "stoa_orders");
        let verifier = verifier(&password, "stoa_orders");
        assert!(verifier.starts_with("SCRAM-SHA-256$1:"), "{verifier}");
        assert!(!verifier.contains(&password));
    }
}
