//! Messages as frames: a length, and what it counts.

use wire::control::{LENGTH_LEN, MAX_MESSAGE_LEN, Malformed, ToNode, ToRelay, decode_to_node, decode_to_relay};

use crate::RecvError;

/// What one end of a channel says: [`ToRelay`] or [`ToNode`].
pub trait Message: Sized + Send + 'static + sealed::Sealed {
    /// Appends the message with its length.
    fn append(&self, out: &mut Vec<u8>);

    /// Reads a message without its length.
    ///
    /// # Errors
    /// For anything but exactly one message.
    fn read(bytes: &[u8]) -> Result<Self, Malformed>;

    /// Whether [`ToNode::Pong`] is the answer to the keepalive of these messages.
    const IS_ASKED: bool;

    /// What asks the other end whether it is there, or says so: these two never leave the channel.
    fn is_keepalive(&self) -> bool;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ToRelay {}
    impl Sealed for super::ToNode {}
}

impl Message for ToRelay {
    const IS_ASKED: bool = true;

    fn append(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        decode_to_relay(bytes)
    }

    fn is_keepalive(&self) -> bool {
        matches!(self, Self::Ping)
    }
}

impl Message for ToNode {
    const IS_ASKED: bool = false;

    fn append(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }

    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        decode_to_node(bytes)
    }

    fn is_keepalive(&self) -> bool {
        matches!(self, Self::Pong)
    }
}

/// Bytes as they came, until there is a whole frame of them. It never holds more than one frame of the longest and what one read
/// brought beyond it.
#[derive(Debug, Default)]
pub(crate) struct Frames(bytes::BytesMut);

/// Room for one read: most messages are short, and there are thousands of channels.
const READ_LEN: usize = 512;

impl Frames {
    /// Takes the next message out, if it is here whole.
    pub(crate) fn next<M: Message>(&mut self) -> Result<Option<M>, RecvError> {
        let Some((length, rest)) = self.0.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_MESSAGE_LEN {
            return Err(RecvError::TooLong { found: length });
        }
        let Some(bytes) = rest.get(..length) else { return Ok(None) };
        let message = M::read(bytes).map_err(|_| RecvError::Malformed)?;
        bytes::Buf::advance(&mut self.0, LENGTH_LEN + length);
        Ok(Some(message))
    }

    /// Where the next bytes go: never more room than the frame that has begun needs, or one read.
    pub(crate) fn room(&mut self) -> &mut bytes::BytesMut {
        let needed = self
            .0
            .first_chunk::<LENGTH_LEN>()
            .map_or(0, |length| (LENGTH_LEN + usize::from(u16::from_be_bytes(*length))).saturating_sub(self.0.len()));
        self.0.reserve(needed.max(READ_LEN));
        &mut self.0
    }

    /// Whether nothing of a next frame has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
