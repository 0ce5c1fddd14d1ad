//! Clients that others wrote, against the responder on loopback.

#![allow(clippy::unwrap_used)]

mod responder;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use futures::executor::block_on;
use relay::server::Verdict;
use responder::Responder;
use stun_client::{Attribute, Class, Client};
use wire::stun::{self, MEMBER_REQUEST_LEN, TransactionId};

#[test]
fn the_crate_stun_client_understands_the_answer() {
    let responder = Responder::start(&["127.0.0.1:0"]);
    let answer = block_on(async {
        let mut client = Client::new("127.0.0.1:0", None).await.unwrap();
        client.binding_request(responder.addresses[0], None).await.unwrap()
    });
    assert_eq!(answer.get_class(), Class::SuccessResponse);
    let mapped = Attribute::get_xor_mapped_address(&answer).expect("an XOR-MAPPED-ADDRESS");
    assert_eq!(mapped.ip(), IpAddr::from([127, 0, 0, 1]));
    assert_ne!(mapped.port(), 0);
    assert_eq!(responder.metrics.counted(Verdict::AnsweredPlain), 1);
}

#[test]
fn coturns_client_understands_the_answer() {
    for (listen, expected) in [("127.0.0.1:0", "127.0.0.1:"), ("[::1]:0", "::1:")] {
        let responder = Responder::start(&[listen]);
        let address = responder.addresses[0];
        let port = address.port().to_string();
        let ip = address.ip().to_string();
        let run = Command::new("turnutils_stunclient").args(["-p", &port, "-L", &ip, &ip]).output();
        let output = match run {
            Ok(output) => output,
            Err(error) => {
                let text = format!("turnutils_stunclient: {error}; install it by `apt-get install coturn`");
                assert!(!responder::lab_is_required(), "{text}");
                println!("left out: {text}");
                return;
            }
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(text.contains(&format!("UDP reflexive addr: {expected}")), "{text}");
        assert!(responder.metrics.counted(Verdict::AnsweredPlain) >= 1);
    }
}

#[test]
fn the_answer_comes_from_the_address_that_was_asked() {
    // One wildcard socket, several local addresses: a connected client takes an answer from the address it asked only.
    let responder = Responder::start(&["0.0.0.0:0", "[::]:0"]);
    let [port_v4, port_v6] = [0, 1].map(|index: usize| responder.addresses[index].port());
    for (client, server) in [
        ("127.0.0.1:0", SocketAddr::from(([127, 0, 0, 1], port_v4))),
        ("127.0.0.1:0", SocketAddr::from(([127, 0, 0, 2], port_v4))),
        ("127.7.7.7:0", SocketAddr::from(([127, 200, 0, 3], port_v4))),
        ("[::1]:0", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port_v6))),
    ] {
        let client = UdpSocket::bind(client).unwrap();
        client.connect(server).unwrap();
        assert_eq!(ask(&client), client.local_addr().unwrap(), "asked {server}");
    }
}

#[test]
fn junk_does_not_stop_the_service() {
    let responder = Responder::start(&["127.0.0.1:0"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(responder.addresses[0]).unwrap();
    for len in [0, 1, 19, 20, 32, 148, 1500, 2048, 2049, 9000] {
        client.send(&vec![4; len]).unwrap();
    }
    // Datagrams of one loopback flow keep their order, so the answer says that all of them are done.
    assert_eq!(ask(&client), client.local_addr().unwrap());
    assert_eq!(responder.metrics.counted(Verdict::NotStun), 10);
    assert_eq!(responder.metrics.counted(Verdict::AnsweredPadded), 1);
}

/// Asks once, as a member does, and returns the address in the answer.
fn ask(client: &UdpSocket) -> SocketAddr {
    let tx = TransactionId([9; 12]);
    // Only the limit of a test that would hang otherwise; loopback answers at once.
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    client.send(&stun::encode_request(tx, MEMBER_REQUEST_LEN)).unwrap();
    let mut buffer = [0; 100];
    let len = client.recv(&mut buffer).expect("an answer from the address that was asked");
    let message = stun::decode(&buffer[..len]).unwrap();
    assert_eq!(message.tx, tx);
    message.mapped.unwrap()
}
