//! API keys made with a second implementation, and what happens to them over time.

use std::{sync::Arc, time::Duration};

use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SerialNumber, date_time_ymd,
};

use crate::{
    auth::{
        AuthError, Authenticator,
        api_key::{ApiKeyError, ApiKeys, CaError, decode_ca},
    },
    clock::{Clock, ManualClock},
    config::ApiKeyConfig,
    limits::{API_KEY_RECHECK_INTERVAL, MAX_API_KEY_TEXT_BYTES, MAX_CACHED_API_KEYS},
    proto,
    telemetry::metrics::Metrics,
};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// 2024-07-01 00:00:00 UTC.
const NOW_MS: u64 = 1_719_792_000_000;
const DAY: Duration = Duration::from_secs(86_400);

/// Valid from 2024-06-01 until 2024-08-01.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.not_before = date_time_ymd(2024, 6, 1);
    params.not_after = date_time_ymd(2024, 8, 1);
    params
}

pub(super) fn authority() -> Issuer {
    authority_of(params("authority"))
}

fn authority_of(mut params: CertificateParams) -> Issuer {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = date_time_ymd(2034, 1, 1);
    Issuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn issue(issuer: &Issuer, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = params("key");
    change(&mut params);
    let key = KeyPair::generate().expect("a key");
    params.signed_by(&key, issuer).expect("signed").der().to_vec()
}

/// The value of `authorization` for a good key with this serial number.
pub(super) fn good_key(issuer: &Issuer, serial: u64) -> Vec<u8> {
    bearer(&issue(issuer, |params| params.serial_number = Some(SerialNumber::from(serial))))
}

fn bearer(der: &[u8]) -> Vec<u8> {
    format!("Bearer {}", BASE64.encode(der)).into_bytes()
}

fn api_keys(issuer: &Issuer) -> (ApiKeys, ManualClock) {
    let clock = ManualClock::at(NOW_MS);
    let keys = ApiKeys::new(issuer.der(), None, Arc::new(clock.clone())).expect("an authority");
    (keys, clock)
}

fn refusal(issuer: &Issuer, authorization: &[u8]) -> ApiKeyError {
    api_keys(issuer).0.check(Some(authorization)).expect_err("refused")
}

#[test]
fn a_good_key_is_known_by_serial_fingerprint_and_end() {
    let issuer = authority();
    let der = issue(&issuer, |params| {
        params.serial_number = Some(SerialNumber::from(vec![1, 0, 0, 0, 0, 0, 0, 0, 0]));
    });
    let (keys, _) = api_keys(&issuer);
    let key = keys.check(Some(&bearer(&der))).expect("accepted");
    assert_eq!(key.serial.as_str(), "18446744073709551616");
    assert_eq!(key.not_after, 1_722_470_400);
    let shown = key.hash.to_string();
    assert_eq!(shown.len(), 12);
    assert!(data_encoding::HEXLOWER.encode(key.hash.as_bytes()).starts_with(&shown));
    assert_eq!(keys.check(Some(&bearer(&der))), Ok(key), "and the same when remembered");
    assert_eq!(keys.remembered(), 1);
}

#[test]
fn the_header_must_be_bearer_and_base64() {
    let issuer = authority();
    let key = issue(&issuer, |_| ());
    let good = BASE64.encode(&key);
    assert_eq!(api_keys(&issuer).0.check(None), Err(ApiKeyError::Missing));
    for text in [String::new(), "Bearer".into(), "Bearer ".into(), format!("Basic {good}")] {
        assert_eq!(refusal(&issuer, text.as_bytes()), ApiKeyError::Scheme, "{text}");
    }
    for text in [format!("bearer {good}"), format!("Bearer\t{good}"), good.clone()] {
        assert_eq!(refusal(&issuer, text.as_bytes()), ApiKeyError::Scheme, "{text}");
    }
    let url_safe = data_encoding::BASE64URL.encode(&[0xfb; 30]);
    for token in ["!", "AAA", "AA=A", "AA==AA==", "=", url_safe.as_str(), "\u{e9}AAA"] {
        let text = format!("Bearer {token}");
        assert_eq!(refusal(&issuer, text.as_bytes()), ApiKeyError::Encoding, "{text}");
    }
    for text in [format!("Bearer  {good}"), format!("Bearer {good} ")] {
        assert_eq!(refusal(&issuer, text.as_bytes()), ApiKeyError::Encoding, "{text}");
    }
    assert_eq!(refusal(&issuer, &[b"Bearer ", &[0xff; 8][..]].concat()), ApiKeyError::Encoding);
}

#[test]
fn bits_after_the_last_byte_may_be_anything() {
    let issuer = authority();
    let (keys, _) = api_keys(&issuer);
    let ends_in_padding = |der: &Vec<u8>| !der.len().is_multiple_of(3);
    let mut made = std::iter::repeat_with(|| issue(&issuer, |_| ()));
    let key = made.by_ref().take(64).find(ends_in_padding).expect("one in 64 keys needs padding");
    let mut text = BASE64.encode(&key).into_bytes();
    let last = text.iter().position(|byte| *byte == b'=').expect("padding") - 1;
    // The next letter differs in the lowest bit, which belongs to no byte.
    text[last] += 1;
    assert!(BASE64.decode(&text).is_err(), "strict base64 refuses it");
    let spelt_otherwise = [b"Bearer ", &text[..]].concat();
    let found = keys.check(Some(&spelt_otherwise)).expect("accepted");
    assert_eq!(Ok(found), keys.check(Some(&bearer(&key))), "one key, however it is spelt");
}

#[test]
fn a_key_too_long_is_refused_unread() {
    let issuer = authority();
    let text = |length| format!("Bearer {}", "!".repeat(length)).into_bytes();
    assert_eq!(refusal(&issuer, &text(MAX_API_KEY_TEXT_BYTES + 1)), ApiKeyError::TooLong);
    assert_eq!(refusal(&issuer, &text(MAX_API_KEY_TEXT_BYTES)), ApiKeyError::Encoding);
}

#[test]
fn strangers_and_middlemen_are_refused() {
    let issuer = authority();
    let namesake = authority();
    let stranger = authority_of(params("somebody"));
    assert_eq!(refusal(&issuer, &good_key(&namesake, 1)), ApiKeyError::Signature);
    assert_eq!(refusal(&issuer, &good_key(&stranger, 1)), ApiKeyError::UnknownAuthority);
    assert_eq!(refusal(&issuer, &bearer(issuer.der())), ApiKeyError::UnknownAuthority);

    let mut middle = params("middle");
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let middle_key = KeyPair::generate().expect("a key");
    let middle = CertifiedIssuer::signed_by(middle, middle_key, &issuer).expect("signed");
    assert_eq!(refusal(&issuer, &good_key(&middle, 1)), ApiKeyError::UnknownAuthority);
    let (keys, _) = api_keys(&issuer);
    assert!(keys.check(Some(&bearer(middle.der()))).is_ok(), "itself it is a key like any other");
}

#[test]
fn a_key_for_other_uses_is_refused() {
    let issuer = authority();
    let usages = |usages: &[ExtendedKeyUsagePurpose]| {
        bearer(&issue(&issuer, |params| params.extended_key_usages = usages.to_vec()))
    };
    let (keys, _) = api_keys(&issuer);
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    assert_eq!(refusal(&issuer, &usages(std::slice::from_ref(&client))), ApiKeyError::Usage);
    assert!(keys.check(Some(&usages(&[client, ExtendedKeyUsagePurpose::ServerAuth]))).is_ok());
    assert!(keys.check(Some(&usages(&[ExtendedKeyUsagePurpose::Any]))).is_ok());
}

#[test]
fn bytes_around_a_key_are_refused() {
    let issuer = authority();
    let key = issue(&issuer, |_| ());
    let longer = bearer(&[&key[..], &[0]].concat());
    assert!(matches!(refusal(&issuer, &longer), ApiKeyError::Malformed(_)));
    let shorter = bearer(&key[..key.len() - 1]);
    assert!(matches!(refusal(&issuer, &shorter), ApiKeyError::Malformed(_)));
}

#[test]
fn time_is_looked_at_on_every_call() {
    let issuer = authority();
    let (keys, clock) = api_keys(&issuer);
    let early = bearer(&issue(&issuer, |params| params.not_before = date_time_ymd(2024, 7, 2)));
    let late = bearer(&issue(&issuer, |params| params.not_after = date_time_ymd(2024, 7, 2)));
    assert_eq!(keys.check(Some(&early)), Err(ApiKeyError::NotYetValid));
    assert!(keys.check(Some(&late)).is_ok());

    clock.advance(DAY);
    assert!(keys.check(Some(&early)).is_ok(), "first millisecond");
    assert!(keys.check(Some(&late)).is_ok(), "last millisecond");
    clock.advance(Duration::from_millis(1));
    assert_eq!(keys.check(Some(&late)), Err(ApiKeyError::Expired));

    clock.advance(20 * 365 * DAY);
    let endless = bearer(&issue(&issuer, |params| params.not_after = date_time_ymd(2090, 1, 1)));
    assert_eq!(keys.check(Some(&endless)), Err(ApiKeyError::Expired), "with its authority");
}

#[test]
fn what_is_remembered_is_bounded_and_only_what_is_signed() {
    let issuer = authority();
    let (keys, _) = api_keys(&issuer);
    let namesake = authority();
    keys.check(Some(&good_key(&namesake, 1))).expect_err("refused");
    assert_eq!(keys.remembered(), 0);
    let key = keys.check(Some(&good_key(&issuer, 1))).expect("accepted");
    for number in 0..2 * MAX_CACHED_API_KEYS as u64 {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        keys.remember(hash, key.clone());
        assert!(keys.remembered() <= MAX_CACHED_API_KEYS);
    }
    assert!(keys.check(Some(&good_key(&issuer, 2))).is_ok(), "and goes on working");
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_hears_of_its_keys_end() {
    let issuer = authority();
    let (keys, clock) = api_keys(&issuer);
    let key = keys.check(Some(&good_key(&issuer, 1))).expect("accepted");
    let mut ended = std::pin::pin!(keys.until_invalid(&key));

    // The wall clock is set forward past the end: seen within one interval.
    assert!(tokio::time::timeout(30 * DAY, &mut ended).await.is_err(), "still valid");
    clock.advance(40 * DAY);
    let ended = tokio::time::timeout(API_KEY_RECHECK_INTERVAL, ended).await;
    assert_eq!(ended.expect("in time"), ApiKeyError::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_the_moment_its_key_does() {
    let issuer = authority();
    let (keys, clock) = api_keys(&issuer);
    clock.advance(31 * DAY - Duration::from_secs(10));
    let key = keys.check(Some(&good_key(&issuer, 1))).expect("accepted");
    let begun = tokio::time::Instant::now();
    let tick = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            clock.advance(Duration::from_millis(1));
        }
    };
    let ended = tokio::select! {
        ended = keys.until_invalid(&key) => ended,
        () = tick => unreachable!("it never ends"),
    };
    assert_eq!(ended, ApiKeyError::Expired);
    let took = begun.elapsed();
    assert!((10_001..10_010).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn a_ca_that_cannot_serve_is_told_why() {
    let issuer = authority();
    let der = issuer.der();
    let good = BASE64.encode(der);
    assert_eq!(decode_ca(&good).as_deref(), Ok(&der[..]));
    let wrapped = good.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line));
    let wrapped = wrapped.collect::<Vec<_>>().join("\n");
    assert_eq!(decode_ca(&wrapped).as_deref(), Ok(&der[..]), "in lines");

    assert_eq!(decode_ca(&issuer.pem()), Err(CaError::Pem));
    assert!(matches!(decode_ca("*"), Err(CaError::Encoding(_))));
    assert!(matches!(decode_ca("AAAA"), Err(CaError::Malformed(_))));
    assert!(matches!(decode_ca(""), Err(CaError::Malformed(_))));
    let leaf = BASE64.encode(&issue(&issuer, |_| ()));
    let problem = decode_ca(&leaf).expect_err("refused");
    assert!(matches!(problem, CaError::NotAnAuthority(_)), "{problem}");
}

fn authenticator(config: Option<&ApiKeyConfig>) -> (Authenticator, Arc<Metrics>) {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW_MS));
    let metrics = Arc::new(Metrics::new());
    let auth = Authenticator::new(config, &clock, Arc::clone(&metrics)).expect("set up");
    (auth, metrics)
}

#[test]
fn without_a_ca_any_header_passes() {
    let (auth, _) = authenticator(None);
    for header in [None, Some(&b""[..]), Some(b"Basic x"), Some(b"Bearer !")] {
        assert_eq!(auth.check_api_key(header), Ok(None));
    }
    assert!(auth.revocation().is_none());
}

#[test]
fn failures_are_counted_by_reason() {
    let issuer = authority();
    let config = ApiKeyConfig { ca_der: issuer.der().to_vec(), revocation: None };
    let (auth, metrics) = authenticator(Some(&config));
    let count = |reason| metrics.auth_failures.with_label_values(&[reason]).get();

    let key = auth.check_api_key(Some(&good_key(&issuer, 5))).expect("accepted").expect("a key");
    assert_eq!(key.serial.as_str(), "5");
    assert_eq!(auth.check_api_key(None), Err(AuthError::ApiKey(ApiKeyError::Missing)));
    assert_eq!(count("api_key_missing"), 1);

    let unsigned = proto::ListenChangesRequest::default();
    let error = auth.recover_user(&unsigned).expect_err("refused");
    assert_eq!(error.reason(), "signature_malformed");
    assert_eq!(count("signature_malformed"), 1);
}
