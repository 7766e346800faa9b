//! AES-GCM for records, by whichever implementation is the faster one on this processor.
//!
//! aws-lc is the fastest where the processor has AVX-512, and the only one elsewhere than on x86-64. Processors with the wide
//! AES instructions but without AVX-512 (AMD Zen 3, Intel's efficient cores) are served by its code of 2013; ring has one
//! made for them, which seals and opens full records 1.4 to 1.9 times as fast.

use aws_lc_rs::aead as lc;
#[cfg(target_arch = "x86_64")]
use ring::aead as wide;
use rustls::ConnectionTrafficSecrets;

/// Length of the authentication tag of both suites.
pub const TAG_BYTES: usize = 16;
/// Length of a nonce.
pub const NONCE_BYTES: usize = 12;

/// A key for one direction. Callers give each nonce once.
pub enum Key {
    /// Of aws-lc.
    Lc(lc::LessSafeKey),
    /// Of ring.
    #[cfg(target_arch = "x86_64")]
    Wide(Box<wide::LessSafeKey>),
}

/// A suite that was not offered, a text that does not authenticate, or one that is too long.
#[derive(Debug)]
pub struct Failed;

impl Key {
    /// The key in `secrets` for the implementation that suits the processor, and the number that nonces are made with.
    ///
    /// # Errors
    /// The suite is none of those offered.
    pub fn new(secrets: &ConnectionTrafficSecrets) -> Result<(Self, [u8; NONCE_BYTES]), Failed> {
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } | ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
                (key, iv)
            }
            _ => return Err(Failed),
        };
        let iv = iv.as_ref().try_into().map_err(|_| Failed)?;
        Ok((Self::of(key.as_ref(), prefers_wide())?, iv))
    }

    /// The suite follows from the length of `key`.
    fn of(key: &[u8], wide: bool) -> Result<Self, Failed> {
        #[cfg(target_arch = "x86_64")]
        if wide {
            let algorithm = match key.len() {
                16 => &wide::AES_128_GCM,
                _ => &wide::AES_256_GCM,
            };
            let key = wide::UnboundKey::new(algorithm, key).map_err(|_| Failed)?;
            return Ok(Self::Wide(Box::new(wide::LessSafeKey::new(key))));
        }
        let _ = wide;
        let algorithm = match key.len() {
            16 => &lc::AES_128_GCM,
            _ => &lc::AES_256_GCM,
        };
        let key = lc::UnboundKey::new(algorithm, key).map_err(|_| Failed)?;
        Ok(Self::Lc(lc::LessSafeKey::new(key)))
    }

    /// Encrypts `text` in place; returns its tag.
    ///
    /// # Errors
    /// `text` is longer than the algorithm allows, which no record is.
    pub fn seal<const N: usize>(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated: [u8; N],
        text: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Failed> {
        match self {
            Self::Lc(key) => {
                let nonce = lc::Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, lc::Aad::from(associated), text).map_err(|_| Failed)?;
                tag.as_ref().try_into().map_err(|_| Failed)
            }
            #[cfg(target_arch = "x86_64")]
            Self::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                let aad = wide::Aad::from(associated);
                let tag = key.seal_in_place_separate_tag(nonce, aad, text).map_err(|_| Failed)?;
                tag.as_ref().try_into().map_err(|_| Failed)
            }
        }
    }

    /// Decrypts `text`, whose last bytes are the tag, in place; returns what it says.
    ///
    /// # Errors
    /// It does not authenticate.
    pub fn open<'t, const N: usize>(
        &self,
        nonce: [u8; NONCE_BYTES],
        associated: [u8; N],
        text: &'t mut [u8],
    ) -> Result<&'t mut [u8], Failed> {
        match self {
            Self::Lc(key) => {
                let nonce = lc::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, lc::Aad::from(associated), text).map_err(|_| Failed)
            }
            #[cfg(target_arch = "x86_64")]
            Self::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, wide::Aad::from(associated), text).map_err(|_| Failed)
            }
        }
    }
}

/// Whether this processor has wide AES instructions and lacks those that aws-lc uses instead.
fn prefers_wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let avx512 = has!("avx512f") && has!("avx512dq") && has!("avx512bw") && has!("avx512vl");
        has!("vaes") && has!("vpclmulqdq") && has!("avx2") && !avx512
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "a failed step is a failed test")]

    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    #[test]
    fn both_implementations_make_and_read_the_same_records() {
        for secret in [&[7; 16][..], &[7; 32]] {
            let keys = [false, true].map(|wide| Key::of(secret, wide).expect("a key"));
            for length in [0, 1, 15, 16, 17, 1_399, 16_384] {
                let plain: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
                let sealed = keys.each_ref().map(|key| {
                    let mut text = plain.clone();
                    let tag = key.seal([1; NONCE_BYTES], *b"head.", &mut text).expect("sealed");
                    text.extend(tag);
                    text
                });
                assert_eq!(sealed[0], sealed[1], "{length} bytes");
                for key in &keys {
                    assert_eq!(key.open([1; NONCE_BYTES], *b"head.", &mut sealed[0].clone()).expect("opened"), plain);
                    for change in 0..3 {
                        let (mut nonce, mut head, mut text) = ([1; NONCE_BYTES], *b"head.", sealed[0].clone());
                        match change {
                            0 => nonce[0] ^= 1,
                            1 => head[0] ^= 1,
                            _ => *text.last_mut().expect("a tag") ^= 1,
                        }
                        assert!(key.open(nonce, head, &mut text).is_err(), "{length} bytes, change {change}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_suite_that_is_never_offered_has_no_key() {
        let iv = Iv::new([9; NONCE_BYTES]);
        assert!(Key::new(&ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([7; 32]), iv }).is_err());
    }
}
