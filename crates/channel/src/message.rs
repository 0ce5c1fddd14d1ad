//! Messages as frames: a length, and what it counts.

use wire::control::{LENGTH_LEN, MAX_MESSAGE_LEN, Malformed, ToNode, ToRelay, decode_to_node, decode_to_relay};
use wire::relay::AllocationId;

use crate::RecvError;
use crate::packets::Packets;

/// What one end of a channel says: [`ToRelay`] or [`ToNode`].
pub trait Message: Sized + Send + 'static + sealed::Sealed {
    /// Appends the message with its length.
    fn append(&self, out: &mut Vec<u8>);

    /// Reads a message without its length.
    ///
    /// # Errors
    /// For anything but exactly one message.
    fn read(bytes: &[u8]) -> Result<Self, Malformed>;

    /// Appends a Data with its length.
    fn append_data(allocation: AllocationId, packet: &[u8], out: &mut Vec<u8>);

    /// What a Data without its length says; nothing of any other message.
    fn read_data(bytes: &[u8]) -> Option<(AllocationId, &[u8])>;

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

    fn append_data(allocation: AllocationId, packet: &[u8], out: &mut Vec<u8>) {
        Self::encode_data(allocation, packet, out);
    }

    fn read_data(bytes: &[u8]) -> Option<(AllocationId, &[u8])> {
        Self::as_data(bytes)
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

    fn append_data(allocation: AllocationId, packet: &[u8], out: &mut Vec<u8>) {
        Self::encode_data(allocation, packet, out);
    }

    fn read_data(bytes: &[u8]) -> Option<(AllocationId, &[u8])> {
        Self::as_data(bytes)
    }

    fn is_keepalive(&self) -> bool {
        matches!(self, Self::Pong)
    }
}

/// Bytes as they came, until there is a whole frame of them. It never holds more than one frame of the longest and what one read
/// brought beyond it.
#[derive(Debug)]
pub(crate) struct Frames {
    bytes: bytes::BytesMut,
    /// Room for the next read.
    read_len: usize,
}

/// Room for one read at first: most messages are short, and there are thousands of channels.
const READ_LEN: usize = 512;

/// Room for one read of a channel that carries packets: what the other end writes at once.
const LONG_READ_LEN: usize = 64 * 1024;

impl Default for Frames {
    fn default() -> Self {
        Self { bytes: bytes::BytesMut::new(), read_len: READ_LEN }
    }
}

impl Frames {
    /// Takes the next message out, if it is here whole.
    pub(crate) fn next<M: Message>(&mut self) -> Result<Option<M>, RecvError> {
        let Some(bytes) = self.whole()? else { return Ok(None) };
        let (message, length) = (M::read(bytes).map_err(|_| RecvError::Malformed)?, bytes.len());
        bytes::Buf::advance(&mut self.bytes, LENGTH_LEN + length);
        Ok(Some(message))
    }

    /// Takes the packets out that are next and here whole, up to the first message that is no packet, or until there are enough.
    pub(crate) fn packets<M: Message>(&mut self, packets: &mut Packets) -> Result<(), RecvError> {
        while !packets.is_full()
            && let Some(bytes) = self.whole()?
            && let Some((allocation, packet)) = M::read_data(bytes)
        {
            packets.push(allocation, packet);
            let length = bytes.len();
            bytes::Buf::advance(&mut self.bytes, LENGTH_LEN + length);
        }
        Ok(())
    }

    /// The next frame without its length, if it is here whole.
    fn whole(&self) -> Result<Option<&[u8]>, RecvError> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_MESSAGE_LEN {
            return Err(RecvError::TooLong { found: length });
        }
        Ok(rest.get(..length))
    }

    /// Where the next bytes go: room for the frame that has begun, or for one read.
    pub(crate) fn room(&mut self) -> &mut bytes::BytesMut {
        let begun = self.bytes.first_chunk::<LENGTH_LEN>();
        let needed = begun.map_or(0, |length| LENGTH_LEN + usize::from(u16::from_be_bytes(*length)));
        self.bytes.reserve(needed.saturating_sub(self.bytes.len()).max(self.read_len));
        &mut self.bytes
    }

    /// So many bytes came with one read. Who says much at once gets more room, until it says little.
    pub(crate) fn came(&mut self, length: usize) {
        if length >= self.read_len {
            self.read_len = (self.read_len * 4).min(LONG_READ_LEN);
        } else if length < READ_LEN && self.read_len > READ_LEN {
            self.read_len = READ_LEN;
            self.bytes = bytes::BytesMut::from(self.bytes.as_ref());
        }
    }

    /// Whether no whole frame is here: then what comes next may be packets too.
    pub(crate) fn wants_more(&self) -> bool {
        matches!(self.whole(), Ok(None))
    }

    /// Whether nothing of a next frame has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
