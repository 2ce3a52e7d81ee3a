//! From messages to domain types: every limit of a request is checked here, once.
//!
//! All violations of a request are reported together. Nothing here costs more than reading the
//! request, so it comes before anything that does.

use std::sync::Arc;

use uuid::Uuid;

use super::error::{ServiceError, Violation};
use crate::{
    limits::{
        DEFAULT_LOCK_TTL_SECONDS, MAX_CLIENT_ID_BYTES, MAX_CLOCK_SKEW_SECONDS,
        MAX_INSTANCE_ID_BYTES, MAX_LOCK_NAME_BYTES, MAX_LOCK_TTL_SECONDS, MAX_RECORD_DATA_BYTES,
        MAX_RECORD_ID_BYTES, MAX_SCHEMA_VERSION_BYTES,
    },
    proto,
    store::LockAction,
};

/// Schema versions that would let a SetLock signature pass for a SetRecord signature: the signed
/// text of a lock ends in `-<acquire>-<exclusive>-<time>`, where a record's has its schema
/// version. No released client uses one.
const AMBIGUOUS_SCHEMA_VERSIONS: [&str; 4] =
    ["true-true", "true-false", "false-true", "false-false"];

/// Collects what is wrong with one request.
#[derive(Debug, Default)]
struct Check(Vec<Violation>);

impl Check {
    fn require(&mut self, holds: bool, field: &'static str, description: &'static str) {
        if !holds {
            self.0.push(Violation { field, description });
        }
    }

    fn no_nul(&mut self, text: &str, field: &'static str) {
        self.require(!text.as_bytes().contains(&0), field, "must not hold a NUL byte");
    }

    fn request_time(&mut self, request_time: u32, now_seconds: u64) {
        self.require(
            now_seconds.abs_diff(u64::from(request_time)) <= MAX_CLOCK_SKEW_SECONDS,
            "request_time",
            "must lie within 300 seconds of the server's clock",
        );
    }

    fn lock_name(&mut self, name: &str) {
        self.require(
            (1..=MAX_LOCK_NAME_BYTES).contains(&name.len()),
            "lock_name",
            "must have 1 to 256 bytes",
        );
        self.no_nul(name, "lock_name");
    }

    fn finish<T>(self, value: T) -> Result<T, ServiceError> {
        if self.0.is_empty() { Ok(value) } else { Err(ServiceError::Invalid(self.0)) }
    }
}

/// Checks a SetRecord request. The record it names is then known to be there.
pub(super) fn set_record(
    request: &proto::SetRecordRequest,
    now_seconds: u64,
) -> Result<&proto::Record, ServiceError> {
    let mut check = Check::default();
    check.request_time(request.request_time, now_seconds);
    if let Some(client_id) = &request.client_id {
        check.no_nul(client_id, "client_id");
    }
    let Some(record) = &request.record else {
        check.require(false, "record", "must be set");
        return Err(ServiceError::Invalid(check.0));
    };
    check.require(
        record.id.len() <= MAX_RECORD_ID_BYTES,
        "record.id",
        "must have at most 64 bytes",
    );
    check.no_nul(&record.id, "record.id");
    check.require(
        record.data.len() <= MAX_RECORD_DATA_BYTES,
        "record.data",
        "must have at most 65536 bytes",
    );
    check.require(
        record.schema_version.len() <= MAX_SCHEMA_VERSION_BYTES,
        "record.schema_version",
        "must have at most 15 bytes",
    );
    check.no_nul(&record.schema_version, "record.schema_version");
    check.require(
        !AMBIGUOUS_SCHEMA_VERSIONS.contains(&record.schema_version.as_str()),
        "record.schema_version",
        "must not be a pair of booleans",
    );
    check.finish(record)
}

/// The client id that notifications repeat: a longer one than any client uses counts as absent.
pub(super) fn client_id(client_id: Option<String>) -> Option<Arc<str>> {
    client_id.filter(|id| !id.is_empty() && id.len() <= MAX_CLIENT_ID_BYTES).map(Arc::from)
}

/// Checks a request that carries nothing but its time.
pub(super) fn request_time(request_time: u32, now_seconds: u64) -> Result<(), ServiceError> {
    let mut check = Check::default();
    check.request_time(request_time, now_seconds);
    check.finish(())
}

/// What a SetLock request asks for, and for whom.
pub(super) fn set_lock(
    request: &proto::SetLockRequest,
    now_seconds: u64,
) -> Result<(Uuid, LockAction), ServiceError> {
    let mut check = Check::default();
    check.request_time(request.request_time, now_seconds);
    check.lock_name(&request.lock_name);
    let instance = parse_instance(&request.instance_id);
    check.require(instance.is_some(), "instance_id", "must be a UUID");
    let ttl_seconds = request.ttl_seconds.unwrap_or(DEFAULT_LOCK_TTL_SECONDS);
    check.require(ttl_seconds > 0, "ttl_seconds", "must be at least 1");
    let ttl_ms = u64::from(ttl_seconds.min(MAX_LOCK_TTL_SECONDS)) * 1_000;
    let action = if request.acquire {
        LockAction::Acquire { exclusive: request.exclusive, ttl_ms }
    } else {
        LockAction::Release
    };
    check.finish((instance.unwrap_or_default(), action))
}

fn parse_instance(text: &str) -> Option<Uuid> {
    (text.len() <= MAX_INSTANCE_ID_BYTES).then(|| Uuid::parse_str(text).ok()).flatten()
}

/// Checks a GetLock request.
pub(super) fn get_lock(
    request: &proto::GetLockRequest,
    now_seconds: u64,
) -> Result<(), ServiceError> {
    let mut check = Check::default();
    check.request_time(request.request_time, now_seconds);
    check.lock_name(&request.lock_name);
    check.finish(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn set_record_request(edit: impl FnOnce(&mut proto::SetRecordRequest)) -> Vec<&'static str> {
        let mut request = proto::SetRecordRequest {
            record: Some(proto::Record { schema_version: "1.0.0".into(), ..Default::default() }),
            request_time: 1_700_000_000,
            ..Default::default()
        };
        edit(&mut request);
        fields(set_record(&request, NOW).err())
    }

    fn set_lock_request(edit: impl FnOnce(&mut proto::SetLockRequest)) -> Vec<&'static str> {
        let mut request = proto::SetLockRequest {
            lock_name: "lock".into(),
            instance_id: "7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e".into(),
            request_time: 1_700_000_000,
            ..Default::default()
        };
        edit(&mut request);
        fields(set_lock(&request, NOW).err())
    }

    fn fields(error: Option<ServiceError>) -> Vec<&'static str> {
        match error {
            None => Vec::new(),
            Some(ServiceError::Invalid(violations)) => {
                violations.iter().map(|violation| violation.field).collect()
            }
            Some(other) => panic!("unexpected error: {other}"),
        }
    }

    fn record(edit: impl FnOnce(&mut proto::Record)) -> Vec<&'static str> {
        set_record_request(|request| {
            if let Some(record) = &mut request.record {
                edit(record);
            }
        })
    }

    #[test]
    fn every_record_limit_holds_at_its_edge_and_not_beyond() {
        assert!(record(|record| record.id = "i".repeat(64)).is_empty());
        assert_eq!(record(|record| record.id = "i".repeat(65)), ["record.id"]);
        assert_eq!(record(|record| record.id = "é".repeat(33)), ["record.id"]);
        assert!(record(|record| record.data = vec![1; 65_536].into()).is_empty());
        assert_eq!(record(|record| record.data = vec![1; 65_537].into()), ["record.data"]);
        assert!(record(|record| record.schema_version = "1".repeat(15)).is_empty());
        let too_long = record(|record| record.schema_version = "1".repeat(16));
        assert_eq!(too_long, ["record.schema_version"]);
        assert!(record(|record| record.revision = u64::MAX).is_empty());
        assert!(record(|record| *record = proto::Record::default()).is_empty());
    }

    #[test]
    fn all_violations_are_reported_together() {
        let found = set_record_request(|request| {
            request.request_time = 0;
            request.client_id = Some("a\0".into());
            if let Some(record) = &mut request.record {
                record.id = "a\0".into();
                record.schema_version = "1\0".into();
            }
        });
        assert_eq!(found, ["request_time", "client_id", "record.id", "record.schema_version"]);
    }

    #[test]
    fn a_missing_record_is_a_violation() {
        assert_eq!(set_record_request(|request| request.record = None), ["record"]);
    }

    #[test]
    fn a_schema_version_that_a_lock_signature_could_carry_is_refused() {
        for pair in AMBIGUOUS_SCHEMA_VERSIONS {
            let found = record(|record| record.schema_version = pair.into());
            assert_eq!(found, ["record.schema_version"], "{pair}");
        }
        assert!(record(|record| record.schema_version = "true".into()).is_empty());
    }

    #[test]
    fn request_time_may_be_off_by_five_minutes_and_no_more() {
        for (offset, valid) in
            [(-301_i64, false), (-300, true), (0, true), (300, true), (301, false)]
        {
            let time = u32::try_from(1_700_000_000_i64 + offset).expect("fits");
            assert_eq!(request_time(time, NOW).is_ok(), valid, "{offset}");
        }
        assert!(request_time(0, NOW).is_err());
        assert!(request_time(u32::MAX, NOW).is_err());
    }

    #[test]
    fn every_lock_limit_holds_at_its_edge_and_not_beyond() {
        assert!(set_lock_request(|_| {}).is_empty());
        assert_eq!(set_lock_request(|request| request.lock_name.clear()), ["lock_name"]);
        assert!(set_lock_request(|request| request.lock_name = "l".repeat(256)).is_empty());
        assert_eq!(set_lock_request(|request| request.lock_name = "l".repeat(257)), ["lock_name"]);
        assert_eq!(set_lock_request(|request| request.lock_name = "l\0".into()), ["lock_name"]);
        assert_eq!(set_lock_request(|request| request.instance_id = "x".into()), ["instance_id"]);
        assert_eq!(set_lock_request(|request| request.instance_id.clear()), ["instance_id"]);
        assert_eq!(set_lock_request(|request| request.ttl_seconds = Some(0)), ["ttl_seconds"]);
    }

    #[test]
    fn every_notation_of_a_uuid_names_the_same_instance() {
        let notations = [
            "7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e",
            "7F1C5A52-3D0F-4E6C-8F0E-0D8A1B2C3D4E",
            "7f1c5a523d0f4e6c8f0e0d8a1b2c3d4e",
            "{7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e}",
            "urn:uuid:7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e",
        ];
        let first = parse_instance(notations[0]);
        assert!(first.is_some());
        assert!(notations.iter().all(|text| parse_instance(text) == first));
    }

    #[test]
    fn ttl_defaults_to_30_seconds_and_is_cut_at_300() {
        for (asked, given) in
            [(None, 30_000), (Some(1), 1_000), (Some(300), 300_000), (Some(301), 300_000)]
        {
            let request = proto::SetLockRequest {
                lock_name: "lock".into(),
                instance_id: "7f1c5a52-3d0f-4e6c-8f0e-0d8a1b2c3d4e".into(),
                acquire: true,
                ttl_seconds: asked,
                request_time: 1_700_000_000,
                ..Default::default()
            };
            let (_, action) = set_lock(&request, NOW).expect("valid");
            assert_eq!(action, LockAction::Acquire { exclusive: false, ttl_ms: given });
        }
    }

    #[test]
    fn an_overlong_or_empty_client_id_counts_as_absent() {
        assert_eq!(client_id(Some("a".repeat(257))), None);
        assert_eq!(client_id(Some(String::new())), None);
        assert_eq!(client_id(Some("a".repeat(256))).map(|id| id.len()), Some(256));
    }
}
