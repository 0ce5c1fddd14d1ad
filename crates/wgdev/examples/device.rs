//! A device with one peer, for measurements and for trying things out by hand:
//! `device NAME PRIVATE_KEY PORT PEER_PUBLIC_KEY PEER_ALLOWED_IP [PEER_ENDPOINT [KEEPALIVE_SECONDS]]`.
//! Prints the state of the peer on every line it reads, and ends when its input ends.

use std::{error::Error, io::BufRead, time::Duration};

use wgdev::{Delta, Device, DeviceConfig, PeerUpdate, Userspace};
use wire::key::{PrivateKey, PublicKey};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, key, port, peer, allowed_ip, rest @ ..] = &args[..] else {
        return Err("see the head of this file for the arguments".into());
    };
    let device = Userspace::open(DeviceConfig {
        name: name.clone(),
        private_key: PrivateKey::from_base64(key)?,
        listen_port: port.parse()?,
        fwmark: 0x10,
        mtu: 1420,
    })?;
    let keepalive = rest.get(1).map(|s| s.parse().map(Duration::from_secs)).transpose()?;
    let delta = Delta {
        upsert: vec![PeerUpdate {
            public_key: peer.parse::<PublicKey>()?,
            endpoint: rest.first().map(|e| e.parse()).transpose()?,
            allowed_ips: Some(vec![allowed_ip.parse()?]),
            keepalive: Some(keepalive),
        }],
        remove: vec![],
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(device.apply(&delta))?;
    println!("up {} {}", device.name(), device.if_index());
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("{:?} {:?}", runtime.block_on(device.peers())?, device.stats());
    }
    Ok(())
}
