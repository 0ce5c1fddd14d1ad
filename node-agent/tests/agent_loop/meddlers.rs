//! Other programs that change peers of the kernel's device.

use super::*;

/// A node with the kernel's device and three peers, connected to nobody.
async fn node() -> (Lab, Arc<Fake>, [PublicKey; 3], TempDir) {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    let peers = [("b", 2), ("c", 3), ("d", 4)].map(|(name, number)| peer(name, number));
    put_slice(&api, "peers-0", &peers.clone().map(|(_, entry)| entry));
    let machine = Machine::new();
    machine.0.has_kernel.store(true, Ordering::Relaxed);
    let lab = Lab::start(&dir.0, &api, address, machine).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 6)).await;
    let device = lab.machine.device();
    (lab, device, peers.map(|(key, _)| key), dir)
}

/// Waits until the device has exactly these peers with these allowed IPs.
async fn back_to(device: &Fake, wanted: &[PeerStatus]) {
    let of = |peers: &[PeerStatus]| peers.iter().map(|p| (p.public_key, p.allowed_ips.clone())).collect::<Vec<_>>();
    let same = async {
        while of(&device.peers().await.unwrap()) != of(wanted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let settled = tokio::time::timeout(DEADLINE, same).await;
    if settled.is_err() {
        panic!("{:#?}\ninstead of\n{:#?}", of(&device.peers().await.unwrap()), of(wanted));
    }
}

async fn meddle(device: &Fake, upsert: Vec<PeerUpdate>, remove: Vec<PublicKey>) {
    device.apply(&Delta { upsert, remove }).await.unwrap();
    device.take_applied();
}

fn with_nets(key: PublicKey, nets: &[&str]) -> PeerUpdate {
    PeerUpdate { allowed_ips: Some(nets.iter().map(|net| net.parse().unwrap()).collect()), ..PeerUpdate::new(key) }
}

#[tokio::test]
async fn what_others_do_to_peers_is_undone_and_the_rest_is_left_alone() {
    let (lab, device, [b, c, d], _dir) = node().await;
    let planned = device.peers().await.unwrap();
    let stranger = peer("stranger", 9).0;
    // One is removed, one loses a prefix to a stranger.
    meddle(&device, vec![with_nets(stranger, &["10.244.3.0/24", "10.99.0.0/24"])], vec![b]).await;
    back_to(&device, &planned).await;
    let applied = device.take_applied();
    let told = applied.iter().flat_map(|delta| &delta.upsert).filter(|update| update.allowed_ips.is_some());
    let mut told: Vec<PublicKey> = told.map(|update| update.public_key).collect();
    told.sort();
    let mut harmed = vec![b, c];
    harmed.sort();
    assert_eq!(told, harmed, "{applied:#?}");
    assert!(applied.iter().flat_map(|delta| &delta.remove).eq([&stranger]), "{applied:#?}");
    // And again, since whoever did it once may do so twice: a prefix too many.
    meddle(&device, vec![with_nets(d, &["10.118.0.4/32", "10.244.4.0/24", "0.0.0.0/0"])], vec![]).await;
    back_to(&device, &planned).await;
    let metrics = lab.ask(Question::Metrics).await.body;
    assert!(metrics.contains("warren_route_repairs_total{kind=\"peer\"} 2"), "{metrics}");
    lab.stop().await;
}

#[tokio::test]
async fn peers_of_a_device_of_this_process_are_nobody_elses() {
    let (api, address, dir) = cluster().await;
    operator::create_node(&api, "a", 1);
    put_slice(&api, "peers-0", &[peer("b", 2).1]);
    let lab = Lab::start(&dir.0, &api, address, Machine::new()).await;
    lab.machine.plan_where(|p| p.last().is_some_and(|p| p.routes.len() == 2)).await;
    let device = lab.machine.device();
    meddle(&device, vec![with_nets(peer("stranger", 9).0, &["10.99.0.0/24"])], vec![]).await;
    // Longer than between two looks.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(device.peers().await.unwrap().len(), 2);
    lab.stop().await;
}
