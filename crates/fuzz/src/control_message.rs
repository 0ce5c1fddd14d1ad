use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use ::relay::server::control::{Config, Input, Member, Output, SessionId, Sessions};
use wire::PublicKey;
use wire::control::{LENGTH_LEN, MAX_MESSAGE_LEN, ToNode, ToRelay, VERSION, decode_to_node, decode_to_relay};

/// Any bytes as a message of either end; and as a stream of them from two members, the first byte of each saying whose it is.
///
/// # Panics
/// When what was read does not come back as it went, or the relay says something to who is no member.
pub fn control_message(bytes: &[u8]) {
    if let Ok(message) = decode_to_relay(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(decode_to_relay(&again[LENGTH_LEN..]), Ok(message), "a message comes back as it went");
        assert!(again.len() <= LENGTH_LEN + MAX_MESSAGE_LEN);
    }
    if let Ok(message) = decode_to_node(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(&again[LENGTH_LEN..], bytes, "there is one way to write it");
    }
    talk(bytes);
}

const NODES: u8 = 2;

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn talk(mut bytes: &[u8]) {
    let now = Instant::now();
    let mut sessions = Sessions::new(Config::default(), now);
    let members =
        (0..NODES).map(|number| (number.to_string(), Member { node: key(number), identity: Some([number; 32]) }));
    sessions.handle_input(Input::Members(members.collect::<BTreeMap<_, _>>()), now);
    for number in 0..=NODES {
        let session = SessionId(number.into());
        sessions.handle_input(Input::Opened { session, identity: [number; 32] }, now);
        if number < NODES {
            let hello = ToRelay::Hello { version: VERSION, node: key(number) };
            sessions.handle_input(Input::Heard { session, message: hello, remote: home(number) }, now);
        }
    }
    while sessions.poll_output().is_some() {}
    while let Some((&[who, high, low], rest)) = bytes.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (message, rest) = rest.split_at(length);
        bytes = rest;
        // The last of them has proven a key that is nobody's.
        let number = who % (NODES + 1);
        let session = SessionId(number.into());
        let input = match decode_to_relay(message) {
            Ok(message) => Input::Heard { session, message, remote: home(number) },
            Err(_) => Input::Nonsense(session),
        };
        sessions.handle_input(input, now);
        while let Some(output) = sessions.poll_output() {
            match output {
                Output::Say { session, message } => {
                    assert!(session != SessionId(NODES.into()) || matches!(message, ToNode::Denied(_)));
                }
                Output::Stray { session, to, .. } => assert_eq!(to.ip(), home(session.0 as u8).ip()),
                Output::Close(_) | Output::Plane(_) => {}
            }
        }
    }
}

fn home(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number + 1], 9))
}
