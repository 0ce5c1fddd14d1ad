//! A device with some peers, for measurements and for trying things out by hand: `device NAME PRIVATE_KEY PORT PEER...`, a
//! peer being `PUBLIC_KEY,ALLOWED_IP[,ENDPOINT[,KEEPALIVE_SECONDS]]`.
//! Prints the state of the peers on every line it reads, and ends when its input ends.

use std::{error::Error, io::BufRead, time::Duration};

use wgdev::{Delta, Device, DeviceConfig, PeerUpdate, Userspace};
use wire::key::{PrivateKey, PublicKey};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, key, port, peers @ ..] = &args[..] else {
        return Err("see the head of this file for the arguments".into());
    };
    let device = Userspace::open(DeviceConfig {
        name: name.clone(),
        private_key: PrivateKey::from_base64(key)?,
        listen_port: port.parse()?,
        fwmark: 0x10,
        mtu: 1420,
    })?;
    let upsert = peers.iter().map(|text| peer(text)).collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(device.apply(&Delta { upsert, remove: vec![] }))?;
    println!("up {} {}", device.name(), device.if_index());
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("{:?} {:?}", runtime.block_on(device.peers())?, device.stats());
    }
    Ok(())
}

fn peer(text: &str) -> Result<PeerUpdate, Box<dyn Error>> {
    let mut fields = text.split(',');
    let public_key = fields.next().unwrap_or_default().parse::<PublicKey>()?;
    let allowed_ip = fields.next().ok_or("a peer needs an allowed IP")?.parse()?;
    let endpoint = fields.next().map(str::parse).transpose()?;
    let keepalive = fields.next().map(|s| s.parse().map(Duration::from_secs)).transpose()?;
    Ok(PeerUpdate { public_key, endpoint, allowed_ips: Some(vec![allowed_ip]), keepalive: Some(keepalive) })
}
