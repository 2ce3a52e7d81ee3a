//! The message codec: protobuf, with a caller's malformed message told apart from a fault of ours.
//!
//! The stock codec answers INTERNAL when a message does not decode. That is the caller's mistake
//! (invalid UTF-8 in a string field, a truncated message), so it becomes INVALID_ARGUMENT here.
//!
//! The stock codec also begins with a buffer of 8 KiB on either side. An open stream keeps the one
//! it encodes into for hours, and a write that waits keeps the one it was decoded from; both are
//! mostly empty. Here they begin small, and a larger reply asks for its room at once.

use std::{fmt, marker::PhantomData};

use prost::Message;
use tonic::{
    Code, Status,
    codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// First buffer of what is sent, in bytes: a notification with its frame.
const ENCODE_BUFFER_BYTES: usize = 64;
/// First buffer of what is received, in bytes: a record of common size.
const DECODE_BUFFER_BYTES: usize = 2_048;
/// Encoded bytes after which messages are handed on, in bytes; tonic's own.
const YIELD_BYTES: usize = 32 * 1024;

/// The codec named by the generated code.
pub struct Codec<Sent, Received>(PhantomData<fn(Sent) -> Received>);

impl<Sent, Received> Default for Codec<Sent, Received> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Sent, Received> fmt::Debug for Codec<Sent, Received> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

impl<Sent, Received> tonic::codec::Codec for Codec<Sent, Received>
where
    Sent: Message + Send + 'static,
    Received: Message + Default + Send + 'static,
{
    type Encode = Sent;
    type Decode = Received;
    type Encoder = MessageEncoder<Sent>;
    type Decoder = MessageDecoder<Received>;

    fn encoder(&mut self) -> Self::Encoder {
        let settings = BufferSettings::new(ENCODE_BUFFER_BYTES, YIELD_BYTES);
        MessageEncoder(ProstCodec::<Sent, Received>::raw_encoder(settings))
    }

    fn decoder(&mut self) -> Self::Decoder {
        let settings = BufferSettings::new(DECODE_BUFFER_BYTES, YIELD_BYTES);
        MessageDecoder(ProstCodec::<Sent, Received>::raw_decoder(settings))
    }
}

/// Encodes one message into room made for all of it.
#[derive(Debug)]
pub struct MessageEncoder<Sent>(ProstEncoder<Sent>);

impl<Sent: Message> Encoder for MessageEncoder<Sent> {
    type Item = Sent;
    type Error = Status;

    fn encode(&mut self, message: Sent, room: &mut EncodeBuf<'_>) -> Result<(), Status> {
        room.reserve(message.encoded_len());
        self.0.encode(message, room)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Decodes one message and names a malformed one INVALID_ARGUMENT.
#[derive(Debug)]
pub struct MessageDecoder<Received>(ProstDecoder<Received>);

impl<Received: Message + Default> Decoder for MessageDecoder<Received> {
    type Item = Received;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Received>, Status> {
        self.0.decode(source).map_err(|status| match status.code() {
            Code::Internal => Status::invalid_argument("the message is not valid protobuf"),
            _ => status,
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
