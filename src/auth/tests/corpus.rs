//! Go's verdicts on API keys, replayed: `tests/golden/api_keys.json`.

use std::{collections::HashMap, sync::Arc};

use data_encoding::BASE64;
use rcgen::{KeyPair, SigningKey as _};
use serde::Deserialize;

use crate::{
    auth::api_key::{ApiKeys, decode_ca},
    clock::{Clock, ManualClock},
};

#[derive(Deserialize)]
struct Corpus {
    now: u64,
    signing_key_pkcs8: String,
    authorities: Vec<Authority>,
    keys: Vec<Key>,
    flips: Vec<Flips>,
}

#[derive(Deserialize)]
struct Authority {
    name: String,
    der: String,
}

#[derive(Deserialize)]
struct Key {
    name: String,
    authority: String,
    der: String,
    accepted: bool,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Flips {
    name: String,
    authority: String,
    body: String,
    algorithm: String,
    verdicts: String,
}

/// Keys that Go accepts and we refuse on purpose: see `auth::certificate`.
const STRICTER: &[&str] = &[
    "name constraints in a key",
    "named leaf of authority permitting example.org",
    "signed by P-256 SHA-512",
    "signed by P-384 SHA-512",
    "signed by P-521 SHA-512",
    "signed by P-224 SHA-256",
    "signed by RSA 1024 SHA-256",
    "signed by RSA 2047 SHA-256",
];

/// Keys that Go refuses and we accept on purpose: see `auth::certificate`.
const MORE_LENIENT: &[&str] = &["key P-256 off its curve"];

impl Corpus {
    fn load() -> Self {
        let text = include_str!("../../../tests/golden/api_keys.json");
        serde_json::from_str(text).expect("the corpus is JSON")
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(ManualClock::at(self.now * 1_000))
    }

    /// Every authority; `None` for those that are refused at start.
    fn authorities(&self) -> HashMap<&str, Option<ApiKeys>> {
        let authorities = self.authorities.iter().map(|authority| {
            let keys =
                decode_ca(&authority.der).and_then(|der| ApiKeys::new(&der, None, self.clock()));
            (authority.name.as_str(), keys.ok())
        });
        authorities.collect()
    }
}

/// Authorities that admit no key by Go's rules, and those whose signatures we do not check.
const REFUSED_AT_START: &[&str] = &[
    "P-224 SHA-256",
    "P-521 SHA-512",
    "RSA 1024 SHA-256",
    "RSA 2047 SHA-256",
    "authority denied",
    "authority for clients",
    "authority that may not sign",
    "authority with unknown critical extension",
    "version 3 authority without extensions",
];

#[test]
fn authorities_that_can_admit_nobody_are_refused_at_start() {
    let corpus = Corpus::load();
    let authorities = corpus.authorities();
    let refused = authorities.iter().filter(|(_, keys)| keys.is_none()).map(|(name, _)| *name);
    let mut refused: Vec<&str> = refused.collect();
    refused.sort_unstable();
    assert_eq!(refused, REFUSED_AT_START);
}

fn bearer(der: &[u8]) -> Vec<u8> {
    format!("Bearer {}", BASE64.encode(der)).into_bytes()
}

#[test]
fn every_key_is_judged_as_by_go() {
    let corpus = Corpus::load();
    let authorities = corpus.authorities();
    let mut faults = Vec::new();
    for key in &corpus.keys {
        let stricter = STRICTER.contains(&key.name.as_str());
        let differs = stricter || MORE_LENIENT.contains(&key.name.as_str());
        assert!(!differs || key.accepted == stricter, "{}: Go says so too", key.name);
        let verdict = authorities[key.authority.as_str()].as_ref().map(|keys| {
            let authorization = format!("Bearer {}", key.der);
            keys.check(Some(authorization.as_bytes()))
        });
        let accepted = matches!(verdict, Some(Ok(_)));
        if accepted != (key.accepted ^ differs) {
            faults.push(format!("{}: {verdict:?}, Go: {:?}", key.name, key.error));
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), corpus.keys.len(), faults.join("\n"));
    assert!(corpus.keys.len() > 300);
}

#[test]
fn every_changed_bit_is_judged_as_by_go() {
    let corpus = Corpus::load();
    let authorities = corpus.authorities();
    let pkcs8 = BASE64.decode(corpus.signing_key_pkcs8.as_bytes()).expect("base64");
    let signer = KeyPair::try_from(pkcs8).expect("the authority's key");
    let mut faults = Vec::new();
    for flips in &corpus.flips {
        let keys = authorities[flips.authority.as_str()].as_ref().expect("a good authority");
        let mut body = BASE64.decode(flips.body.as_bytes()).expect("base64");
        let algorithm = BASE64.decode(flips.algorithm.as_bytes()).expect("base64");
        assert_eq!(flips.verdicts.len(), 8 * body.len());
        for (index, verdict) in flips.verdicts.bytes().enumerate() {
            let (at, bit) = (index / 8, 1 << (index % 8));
            body[at] ^= bit;
            let key = certificate(&body, &algorithm, &signer.sign(&body).expect("signed"));
            let answer = keys.check(Some(&bearer(&key)));
            if answer.is_ok() != (verdict == b'1') {
                faults.push(format!("{} byte {at} = {:#04x}: {answer:?}", flips.name, body[at]));
            }
            body[at] ^= bit;
        }
        let key = certificate(&body, &algorithm, &signer.sign(&body).expect("signed"));
        keys.check(Some(&bearer(&key))).expect("unchanged it is good");
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn certificate(body: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    let bits = element(0x03, &[&[0], signature]);
    element(0x30, &[body, algorithm, &bits])
}

fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).expect("short").to_be_bytes();
    let header = match length {
        [0, length @ ..0x80] => vec![tag, length],
        [0, length] => vec![tag, 0x81, length],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [header, content].concat()
}
