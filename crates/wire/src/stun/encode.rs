//! Making messages.

use std::net::SocketAddr;

use super::{
    ATTRIBUTE_HEADER_LEN, HEADER_LEN, MAGIC_COOKIE, MAX_REQUEST_LEN, MAX_SUCCESS_LEN, TransactionId, address,
    attribute, canonical, message_type,
};

/// A Binding request of at least `pad_to` bytes.
///
/// Sizes are multiples of 4; the smallest is the bare header of 20 bytes, the largest [`MAX_REQUEST_LEN`]. Padding is an
/// attribute that every server skips.
#[must_use]
pub fn encode_request(tx: TransactionId, pad_to: usize) -> Vec<u8> {
    let mut message = header(message_type::REQUEST, tx, pad_to.min(MAX_REQUEST_LEN));
    if pad_to > HEADER_LEN {
        let padding = pad_to.min(MAX_REQUEST_LEN).next_multiple_of(4).saturating_sub(HEADER_LEN + ATTRIBUTE_HEADER_LEN);
        begin_attribute(&mut message, attribute::FILLER, padding);
        message.resize(message.len() + padding, 0);
    }
    finish(message)
}

/// A Binding success response that tells the requester the address its request came from.
///
/// 32 bytes for IPv4, 44 for IPv6. An IPv4 address that a dual-stack socket shows inside IPv6 is written as IPv4.
#[must_use]
pub fn encode_success(tx: TransactionId, mapped: SocketAddr) -> Vec<u8> {
    let mapped = canonical(mapped);
    let mut message = header(message_type::SUCCESS, tx, MAX_SUCCESS_LEN);
    begin_attribute(&mut message, attribute::XOR_MAPPED_ADDRESS, if mapped.is_ipv4() { 8 } else { 20 });
    address::encode(mapped, &address::Mask::xor(tx), &mut message);
    finish(message)
}

/// The frame of a probe: header and attribute header for a value of `value_len` bytes, which the caller appends.
pub(crate) fn encode_probe(tx: TransactionId, request: bool, value_len: usize) -> Vec<u8> {
    let kind = if request { message_type::REQUEST } else { message_type::SUCCESS };
    let mut message = header(kind, tx, HEADER_LEN + ATTRIBUTE_HEADER_LEN + value_len);
    begin_attribute(&mut message, attribute::PROBE, value_len);
    set_length(&mut message, ATTRIBUTE_HEADER_LEN + value_len);
    message
}

fn header(message_type: u16, tx: TransactionId, capacity: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(capacity.max(HEADER_LEN));
    message.extend_from_slice(&message_type.to_be_bytes());
    message.extend_from_slice(&[0, 0]);
    message.extend_from_slice(&MAGIC_COOKIE);
    message.extend_from_slice(&tx.0);
    message
}

fn begin_attribute(message: &mut Vec<u8>, attribute_type: u16, value_len: usize) {
    message.extend_from_slice(&attribute_type.to_be_bytes());
    message.extend_from_slice(&length_field(value_len));
}

fn finish(mut message: Vec<u8>) -> Vec<u8> {
    let length = message.len() - HEADER_LEN;
    set_length(&mut message, length);
    message
}

fn set_length(message: &mut [u8], length: usize) {
    message[2..4].copy_from_slice(&length_field(length));
}

fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length)
        .expect("every message made here is below MAX_REQUEST_LEN or a probe of fixed size")
        .to_be_bytes()
}
