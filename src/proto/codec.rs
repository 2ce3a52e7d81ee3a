//! The message codec: protobuf, with a caller's malformed message told apart from a fault of ours.
//!
//! The stock codec answers INTERNAL when a message does not decode. That is the caller's mistake
//! (invalid UTF-8 in a string field, a truncated message), so it becomes INVALID_ARGUMENT here.

use std::{fmt, marker::PhantomData};

use prost::Message;
use tonic::{
    Code, Status,
    codec::{BufferSettings, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

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
    type Encoder = ProstEncoder<Sent>;
    type Decoder = MessageDecoder<Received>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Sent, Received>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(ProstCodec::<Sent, Received>::raw_decoder(BufferSettings::default()))
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
