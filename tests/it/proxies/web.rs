//! Calls of a browser: gRPC-Web over HTTP/1.1.

use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use data_sync::proto::{ListChangesReply, ListChangesRequest, ListenChangesRequest, Notification};
use prost::Message;
use reqwest::Response;

use crate::support::{
    client::{Wallet, now},
    http::http1,
    wait::within,
};

async fn post(address: SocketAddr, method: &str, message: &impl Message) -> Messages {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    let request = http1()
        .post(format!("http://{address}/sync.Syncer/{method}"))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .body([&[0][..], &length, &message].concat());
    let response = within(method, request.send()).await.expect("answers");
    assert_eq!(response.status(), 200);
    Messages { response, read: BytesMut::new() }
}

/// The messages of a reply, as they arrive.
#[derive(Debug)]
pub(super) struct Messages {
    response: Response,
    read: BytesMut,
}

impl Messages {
    async fn next_frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let [flags, a, b, c, d, rest @ ..] = &self.read[..] {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                if rest.len() >= length {
                    let frame = (*flags, rest[..length].to_vec());
                    self.read.advance(5 + length);
                    return frame;
                }
            }
            let chunk = within("the body", self.response.chunk()).await.expect("no error");
            self.read.extend_from_slice(&chunk.expect("no end"));
        }
    }

    async fn message<M: Message + Default>(&mut self) -> M {
        let (flags, message) = self.next_frame().await;
        assert_eq!(flags, 0, "a message, not {}", String::from_utf8_lossy(&message));
        M::decode(message.as_slice()).expect("a message")
    }

    /// The next notification of a stream.
    pub(super) async fn next(&mut self) -> Notification {
        self.message().await
    }
}

/// Lists a page.
pub(super) async fn list(address: SocketAddr, wallet: &Wallet, since: u64) -> ListChangesReply {
    let request = wallet.signed(ListChangesRequest {
        since_revision: since,
        request_time: now(),
        ..Default::default()
    });
    let mut reply = post(address, "ListChanges", &request).await;
    let page = reply.message().await;
    let (flags, trailers) = reply.next_frame().await;
    let trailers = String::from_utf8(trailers).expect("text");
    assert!(flags & 0x80 != 0 && trailers.contains("grpc-status:0"), "{trailers}");
    page
}

/// Opens a stream and takes the first, empty notification.
pub(super) async fn listen(address: SocketAddr, wallet: &Wallet) -> Messages {
    let request = wallet.signed(ListenChangesRequest { request_time: now(), ..Default::default() });
    let mut stream = post(address, "ListenChanges", &request).await;
    assert_eq!(stream.next().await, Notification::default());
    stream
}
