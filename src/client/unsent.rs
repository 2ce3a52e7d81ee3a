//! Calls that never left this process.
//!
//! A server that ends a connection in good order says so first, and lets what runs on it finish.
//! The transport learns what that means when the next call is handed to it: it refuses that call
//! and makes a new connection for the one after. Such a call reached nobody, so it is made again at
//! once; gRPC calls that a transparent retry (its proposal A6), and other libraries do it by
//! themselves.

use std::error::Error as _;

use tonic::Status;

use crate::limits::CLIENT_UNSENT_RETRIES;

/// Makes `call`, and makes it again while it was never sent.
///
/// # Errors
/// The status of the last attempt.
pub(crate) async fn until_sent<T, Call>(mut call: impl FnMut() -> Call) -> Result<T, Status>
where
    Call: Future<Output = Result<T, Status>>,
{
    for _ in 0..CLIENT_UNSENT_RETRIES {
        match call().await {
            Err(status) if was_never_sent(&status) => {}
            answer => return answer,
        }
    }
    call().await
}

/// Whether the connection refused the call because it was about to end: it was cancelled on its
/// way there, or the server named it among those it will not look at.
fn was_never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.downcast_ref().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_orderly = error.reason() == Some(h2::Reason::NO_ERROR);
            return is_orderly && error.is_go_away() && error.is_remote();
        }
        source = error.source();
    }
    false
}
