//! Answers a message above the size limit RESOURCE_EXHAUSTED, as other gRPC servers do.
//!
//! The codec of tonic answers it OUT_OF_RANGE, in the reply's headers as nothing was sent before.
//! This server means nothing of its own by that code, so every such reply is translated.

use http::Response;
use tonic::{Code, Status};

use super::observe::status_of;
use crate::limits::MAX_REQUEST_MESSAGE_BYTES;

pub(super) fn map<B>(mut response: Response<B>) -> Response<B> {
    if status_of(response.headers()) == Some(Code::OutOfRange) {
        let status = Status::resource_exhausted(format!(
            "the message is larger than {MAX_REQUEST_MESSAGE_BYTES} bytes"
        ));
        if let Err(status) = status.add_header(response.headers_mut()) {
            tracing::warn!(%status, "status cannot be written as headers");
        }
    }
    response
}
