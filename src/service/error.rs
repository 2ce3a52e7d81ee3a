//! The only place where errors become gRPC statuses.
//!
//! Every status carries an `ErrorInfo` with domain [`DOMAIN`] and a reason from the list in
//! `docs/errors.md`; clients may rely on code and reason. Texts are for people. None of them
//! holds SQL, paths, addresses or a caller's data.

use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    auth::AuthError,
    store::{Quota, StoreError},
};

/// The `ErrorInfo` domain of every status.
pub const DOMAIN: &str = "data-sync";

/// Pause asked of callers when the store is out of reach or busy.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// One field of a request that breaks a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, such as `record.id`.
    pub field: &'static str,
    /// What the field must be; never what it was.
    pub description: &'static str,
}

/// Why a stream was ended by the server. Never a success: a client would not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamEnd {
    /// The replica is stopping.
    Draining,
    /// The stream reached its greatest age.
    MaxAge,
    /// The client does not read what it is sent.
    Stalled,
    /// A newer stream of the same user took the place.
    Displaced,
}

impl StreamEnd {
    /// The cause in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::MaxAge => "max_age",
            Self::Stalled => "stalled",
            Self::Displaced => "displaced",
        }
    }
}

/// Why a request was not answered with a reply.
#[derive(Debug, Clone, Error)]
pub enum ServiceError {
    /// The request breaks a limit.
    #[error("invalid request")]
    Invalid(Vec<Violation>),
    /// The caller is nobody, or has no valid API key.
    #[error(transparent)]
    Unauthenticated(#[from] AuthError),
    /// Another instance holds the lock.
    #[error("lock held by another instance")]
    LockHeld,
    /// The user holds as much as allowed.
    #[error("over quota")]
    OverQuota(Quota),
    /// The user has as many streams open as allowed, or the replica has.
    #[error("too many streams")]
    TooManyStreams,
    /// The caller asks too often.
    #[error("rate limited")]
    RateLimited {
        /// When the next request may pass.
        retry_after: Duration,
    },
    /// The stream was ended by the server.
    #[error("stream ended")]
    StreamEnded(StreamEnd),
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ServiceError> for Status {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Invalid(violations) => invalid(&violations),
            ServiceError::Unauthenticated(error) => {
                let reason = error.reason().to_ascii_uppercase();
                status(Code::Unauthenticated, &reason, &error.to_string())
            }
            ServiceError::LockHeld => {
                status(Code::FailedPrecondition, "LOCK_HELD", "lock held by another instance")
            }
            ServiceError::OverQuota(quota) => over_quota(quota),
            ServiceError::TooManyStreams => retryable(
                Code::ResourceExhausted,
                "TOO_MANY_STREAMS",
                "too many streams are open",
                RETRY_DELAY,
            ),
            ServiceError::RateLimited { retry_after } => {
                retryable(Code::ResourceExhausted, "RATE_LIMITED", "too many requests", retry_after)
            }
            ServiceError::StreamEnded(end) => stream_ended(end),
            ServiceError::Store(error) => store_error(&error),
        }
    }
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, std::collections::HashMap::new())
}

fn status(code: Code, reason: &str, message: &str) -> Status {
    Status::with_error_details(code, message, details(reason))
}

fn retryable(code: Code, reason: &str, message: &str, delay: Duration) -> Status {
    let mut details = details(reason);
    details.set_retry_info(Some(delay));
    Status::with_error_details(code, message, details)
}

fn invalid(violations: &[Violation]) -> Status {
    let mut details = details("INVALID_REQUEST");
    let mut message = String::from("invalid request");
    for (index, violation) in violations.iter().enumerate() {
        details.add_bad_request_violation(violation.field, violation.description);
        message.push_str(if index == 0 { ": " } else { "; " });
        message.push_str(violation.field);
        message.push(' ');
        message.push_str(violation.description);
    }
    Status::with_error_details(Code::InvalidArgument, message, details)
}

fn over_quota(quota: Quota) -> Status {
    let mut details = details("OVER_QUOTA");
    details.add_quota_failure_violation(quota.as_str(), "the user holds as much as allowed");
    Status::with_error_details(
        Code::ResourceExhausted,
        format!("the quota of {} is used up", quota.as_str()),
        details,
    )
}

fn stream_ended(end: StreamEnd) -> Status {
    let (code, reason, message) = match end {
        StreamEnd::Draining => {
            (Code::Unavailable, "DRAINING", "the server is shutting down, listen again")
        }
        StreamEnd::MaxAge => {
            (Code::Unavailable, "STREAM_MAX_AGE", "the stream reached its age limit, listen again")
        }
        StreamEnd::Stalled => {
            (Code::ResourceExhausted, "STREAM_STALLED", "the client did not read its notifications")
        }
        StreamEnd::Displaced => (
            Code::ResourceExhausted,
            "STREAM_DISPLACED",
            "a newer stream took the place of this one",
        ),
    };
    status(code, reason, message)
}

fn store_error(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) => retryable(
            Code::Unavailable,
            "STORE_UNAVAILABLE",
            "the store is out of reach, try again",
            RETRY_DELAY,
        ),
        StoreError::Overloaded => retryable(
            Code::ResourceExhausted,
            "OVERLOADED",
            "too many requests are waiting, try again",
            RETRY_DELAY,
        ),
        StoreError::Contended => retryable(
            Code::Aborted,
            "CONTENDED",
            "others kept changing the same data, try again",
            RETRY_DELAY,
        ),
        StoreError::DeadlineExceeded => status(
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            "the deadline passed before the call was answered",
        ),
        StoreError::StorageFull => {
            status(Code::ResourceExhausted, "STORAGE_FULL", "the server's storage is full")
        }
        StoreError::Internal(_) => status(Code::Internal, "INTERNAL", "internal error"),
    }
}
