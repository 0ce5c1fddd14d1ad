//! gotatun's own device as it comes, with one peer:
//! `bare-gotatun NAME PRIVATE_KEY PORT PEER_PUBLIC_KEY PEER_ALLOWED_IP PEER_ENDPOINT`, keys in hexadecimal.

use gotatun::device::{self, Peer};
use gotatun::x25519::{PublicKey, StaticSecret};

fn key(text: &str) -> [u8; 32] {
    std::array::from_fn(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).expect("a key in hexadecimal"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, private, port, public, allowed, endpoint] = &args[..] else {
        return Err("see the head of this file for the arguments".into());
    };
    let mut peer = Peer::new(PublicKey::from(key(public))).with_allowed_ip(allowed.parse()?);
    peer.endpoint = Some(endpoint.parse()?);
    let builder = device::build().with_private_key(StaticSecret::from(key(private)));
    let builder = builder.with_listen_port(port.parse()?).with_peer(peer).with_default_udp();
    let _device = builder.create_tun(name)?.build().await?;
    std::future::pending::<()>().await;
    Ok(())
}
