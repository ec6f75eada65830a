//! Messages and frames of Riak's protocol-buffers interface.
//!
//! ```text
//! offset size
//!      0    4  length of what follows, big-endian: the message and 1
//!      4    1  message code
//!      5    -  the message (proto/riak/riak.proto)
//! ```
//!
//! A frame that is longer than [`FRAME_BYTES_MAX`], or too short for a code, is refused before memory is taken for it.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The code that `build.rs` generates.
#[expect(unreachable_pub, reason = "generated from proto/riak/riak.proto")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/riak.rs"));
}
pub(super) use generated::*;

/// Longest frame that is taken: an object of Riak's own limit (50 MiB) and a sibling of it. Keys that gather more than that are
/// told as a fault.
pub(super) const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of a frame that room is made for ahead of their arrival: what is only declared takes no memory.
const READ_AHEAD_BYTES: usize = 64 * 1024;

/// The code of an error, which may come in place of any reply.
pub(super) const ERROR: u8 = 0;

/// A request with its code and the reply that belongs to it.
pub(super) trait Request: Message + Clone {
    /// Its message code.
    const CODE: u8;
    /// The code of its reply.
    const REPLY_CODE: u8;
    /// Its reply.
    type Reply: Message + Default;

    /// How long the node may take, milliseconds; the few that are answered from the node's memory take none.
    fn set_timeout(&mut self, _ms: u32) {}
}

/// Lists the requests: name, code, reply, its code, whether it has a timeout.
macro_rules! requests {
    ($($request:ident $code:literal -> $reply:ident $reply_code:literal $($timeout:ident)?;)*) => {
        $(impl Request for $request {
            const CODE: u8 = $code;
            const REPLY_CODE: u8 = $reply_code;
            type Reply = $reply;
            $(fn set_timeout(&mut self, ms: u32) {
                self.$timeout = Some(ms);
            })?
        })*
    };
}
requests! {
    GetServerInfoReq 7 -> GetServerInfoResp 8;
    GetReq 9 -> GetResp 10 timeout;
    PutReq 11 -> PutResp 12 timeout;
    DelReq 13 -> DelResp 14 timeout;
    IndexReq 25 -> IndexResp 26 timeout;
    GetBucketTypeReq 31 -> GetBucketResp 20;
}

/// A reply as it arrived.
#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    /// Message code.
    pub(super) code: u8,
    /// The message.
    pub(super) message: Bytes,
}

/// Writes a request as a frame.
pub(super) fn encode<R: Request>(request: &R) -> Bytes {
    let length = request.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + length);
    // A request is a key, a document and a few numbers; the longest document is 64 MiB.
    bytes.put_u32(u32::try_from(length + 1).expect("a request is shorter than 4 GiB"));
    bytes.put_u8(R::CODE);
    request.encode(&mut bytes).expect("a buffer of bytes grows as it must");
    bytes.freeze()
}

/// Reads the next frame. What cannot be one is `InvalidData`; the end of the stream is `UnexpectedEof`.
pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let length = stream.read_u32().await? as usize;
    if !(1..=FRAME_BYTES_MAX).contains(&length) {
        let message = format!("a frame of {length} bytes; 1 to {FRAME_BYTES_MAX} are expected");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = BytesMut::new();
    let mut rest = stream.take(length as u64);
    while bytes.len() < length {
        bytes.reserve((length - bytes.len()).min(READ_AHEAD_BYTES.max(bytes.len())));
        if rest.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut message = bytes.freeze();
    let code = message.get_u8();
    Ok(Frame { code, message })
}

/// Answers that are no reply to the request.
#[derive(Debug, PartialEq)]
pub(super) enum NoReply {
    /// The node's own text.
    Error(String),
    /// What came does not belong to the request, or cannot be read.
    Strange(String),
}

/// Reads the reply to a request out of a frame.
pub(super) fn reply<R: Request>(frame: Frame) -> Result<R::Reply, NoReply> {
    let Frame { code, message } = frame;
    if code == ERROR {
        let error =
            ErrorResp::decode(message).map_err(|error| NoReply::Strange(format!("an error: {error}")))?;
        return Err(NoReply::Error(String::from_utf8_lossy(&error.errmsg).into_owned()));
    }
    if code != R::REPLY_CODE {
        return Err(NoReply::Strange(format!("message code {code} where {} belongs", R::REPLY_CODE)));
    }
    R::Reply::decode(message).map_err(|error| NoReply::Strange(format!("message code {code}: {error}")))
}
