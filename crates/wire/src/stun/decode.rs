//! Reading messages from anybody.

use std::net::SocketAddr;

use super::{ATTRIBUTE_HEADER_LEN, HEADER_LEN, TransactionId, address, attribute, is_stun, is_wireguard, message_type};

/// Attributes looked at in one message. Public servers send about six; what has more is not a Binding of use to us.
const MAX_ATTRIBUTES: usize = 32;

/// The class of a message (RFC 8489, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Wants an answer.
    Request,
    /// Wants none.
    Indication,
    /// The answer.
    Success,
    /// The answer, being no.
    Error,
}

/// A decoded Binding message. Of an attribute that occurs twice the first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Request, indication, success or error.
    pub class: Class,
    /// Which transaction it belongs to.
    pub tx: TransactionId,
    /// XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS.
    pub mapped: Option<SocketAddr>,
    /// The sealed value of our own attribute, for [`crate::probe`].
    pub probe: Option<&'a [u8]>,
    /// ERROR-CODE, 300 to 699.
    pub error_code: Option<u16>,
    /// An attribute that must be understood and is not. A request with one must not be served, a response with one
    /// must not be believed (RFC 8489, section 6.3).
    pub unknown_required: Option<u16>,
}

/// Why bytes are no Binding message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not framed as STUN.
    #[error("not STUN: a message starts with two zero bits, has the magic cookie and a length equal to its size")]
    NotStun,
    /// Another method than Binding.
    #[error("the only method served is Binding, found message type {0:#06x}")]
    NotBinding(u16),
    /// An attribute reaches beyond the message.
    #[error("an attribute reaches beyond the end of its message")]
    Overrun,
    /// More attributes than a Binding message has any use for.
    #[error("a Binding message has at most {MAX_ATTRIBUTES} attributes, found more")]
    TooManyAttributes,
    /// An address attribute of unknown family or wrong length.
    #[error("attribute {0:#06x} is no address of 8 or 20 bytes")]
    BadAddress(u16),
    /// An ERROR-CODE that is too short or out of range.
    #[error("ERROR-CODE is not between 300 and 699")]
    BadErrorCode,
}

/// Decodes one datagram. It never allocates, and reads each byte at most once.
///
/// # Errors
/// For anything that is not exactly one well-formed Binding message.
pub fn decode(datagram: &[u8]) -> Result<Message<'_>, DecodeError> {
    if !is_stun(datagram) || is_wireguard(datagram) {
        return Err(DecodeError::NotStun);
    }
    let (header, body) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(DecodeError::NotStun)?;
    let class = class(u16::from_be_bytes([header[0], header[1]]))?;
    let mut tx = TransactionId([0; 12]);
    tx.0.copy_from_slice(&header[8..]);

    let mut reader = Reader::new(class, tx);
    for (count, item) in Attributes(body).enumerate() {
        if count == MAX_ATTRIBUTES {
            return Err(DecodeError::TooManyAttributes);
        }
        let (attribute_type, value) = item?;
        reader.read(attribute_type, value)?;
    }
    Ok(reader.finish())
}

fn class(message_type: u16) -> Result<Class, DecodeError> {
    match message_type {
        message_type::REQUEST => Ok(Class::Request),
        message_type::INDICATION => Ok(Class::Indication),
        message_type::SUCCESS => Ok(Class::Success),
        message_type::ERROR => Ok(Class::Error),
        other => Err(DecodeError::NotBinding(other)),
    }
}

/// Collects what attributes say.
struct Reader<'a> {
    message: Message<'a>,
    /// The address of RFC 3489, used when the one of RFC 8489 is missing.
    plain: Option<SocketAddr>,
}

impl<'a> Reader<'a> {
    fn new(class: Class, tx: TransactionId) -> Self {
        let message = Message { class, tx, mapped: None, probe: None, error_code: None, unknown_required: None };
        Self { message, plain: None }
    }

    fn read(&mut self, attribute_type: u16, value: &'a [u8]) -> Result<(), DecodeError> {
        match attribute_type {
            attribute::XOR_MAPPED_ADDRESS => {
                let address = address::decode(value, &address::Mask::xor(self.message.tx))
                    .ok_or(DecodeError::BadAddress(attribute_type))?;
                self.message.mapped.get_or_insert(address);
            }
            attribute::MAPPED_ADDRESS => {
                let address =
                    address::decode(value, &address::Mask::PLAIN).ok_or(DecodeError::BadAddress(attribute_type))?;
                self.plain.get_or_insert(address);
            }
            attribute::ERROR_CODE => {
                self.message.error_code.get_or_insert(error_code(value)?);
            }
            attribute::PROBE => {
                self.message.probe.get_or_insert(value);
            }
            // Credentials are offered, none is asked for: they may be skipped (RFC 8489, section 9).
            attribute::USERNAME
            | attribute::MESSAGE_INTEGRITY
            | attribute::UNKNOWN_ATTRIBUTES
            | attribute::REALM
            | attribute::NONCE
            | attribute::MESSAGE_INTEGRITY_SHA256
            | attribute::PASSWORD_ALGORITHM
            | attribute::USERHASH => {}
            attribute::OPTIONAL.. => {}
            required => {
                self.message.unknown_required.get_or_insert(required);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Message<'a> {
        self.message.mapped = self.message.mapped.or(self.plain);
        self.message
    }
}

/// ERROR-CODE: hundreds in 3 bits, the rest in a byte (RFC 8489, section 14.8).
fn error_code(value: &[u8]) -> Result<u16, DecodeError> {
    let &[_, _, hundreds, number] = value.first_chunk::<4>().ok_or(DecodeError::BadErrorCode)?;
    let hundreds = hundreds & 0x07;
    if !(3..=6).contains(&hundreds) || number > 99 {
        return Err(DecodeError::BadErrorCode);
    }
    Ok(u16::from(hundreds) * 100 + u16::from(number))
}

/// Iterates over type and value, stopping at the first attribute that does not fit.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let parsed = split_attribute(self.0);
        self.0 = parsed.map_or(&[], |(_, _, rest)| rest);
        Some(parsed.map(|(attribute_type, value, _)| (attribute_type, value)).ok_or(DecodeError::Overrun))
    }
}

/// Type, value, and what follows the padding to the next multiple of 4.
fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&[type_high, type_low, length_high, length_low], rest) = bytes.split_first_chunk::<ATTRIBUTE_HEADER_LEN>()?;
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let value = rest.get(..length)?;
    let rest = rest.get(length.next_multiple_of(4)..)?;
    Some((u16::from_be_bytes([type_high, type_low]), value, rest))
}
