//! What can go wrong for an application.

use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Why a call did not succeed. A conflict and a held lock are answers, not errors.
#[derive(Debug, Error)]
pub enum Error {
    /// The server's address cannot be used.
    #[error("{url:?} is no server address; write one such as https://sync.example.org")]
    Address {
        /// The address as given.
        url: String,
        /// What is wrong with it, where it is known.
        #[source]
        source: Option<tonic::transport::Error>,
    },
    /// The API key holds characters that cannot be sent in a header.
    #[error("the API key is not base 64 text")]
    ApiKey,
    /// No connection could be made.
    #[error("cannot connect to {url}")]
    Connect {
        /// The server's address.
        url: String,
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
    /// The server, or the connection to it, refused or failed the call.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Rpc(#[source] Status),
    /// The server's answer makes no sense.
    #[error("the server's answer makes no sense: {0}")]
    Protocol(&'static str),
}

impl Error {
    /// The gRPC status, with the server's details, where the server or the transport gave one.
    #[must_use]
    pub const fn status(&self) -> Option<&Status> {
        match self {
            Self::Rpc(status) => Some(status),
            Self::Address { .. } | Self::ApiKey | Self::Connect { .. } | Self::Protocol(_) => None,
        }
    }

    /// The `google.rpc` details of the status; empty where there are none.
    #[must_use]
    pub fn details(&self) -> ErrorDetails {
        self.status().map(Status::get_error_details).unwrap_or_default()
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Rpc(status)
    }
}

/// Whether the same request may succeed when it is sent again soon. Every request of this
/// contract may be repeated: a write that was stored already is answered as it was then.
pub(super) fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Aborted => true,
        // What hyper reports of a connection lost under a call, unless it names a code.
        Code::Unknown | Code::Cancelled | Code::Internal => {
            let mut source = std::error::Error::source(status);
            while let Some(error) = source {
                if error.is::<tonic::transport::Error>() {
                    return true;
                }
                source = error.source();
            }
            false
        }
        _ => false,
    }
}

/// The pause that the server asks for before the next attempt.
pub(super) fn asked_pause(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}
