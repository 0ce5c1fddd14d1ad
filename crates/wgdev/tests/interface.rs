//! The interface outlives the device, and nothing else is taken for it.

#![allow(clippy::unwrap_used)]

#[macro_use]
mod lab;

use lab::{AT_B, Cable, DEVICE, Echo, Namespace, Node, Open, Pair, block_on, config, eventually, open_error, peer};
use wgdev::{Delta, DeviceConfig, DeviceError};

on_both_devices!(
    interface_index_addresses_and_routes_outlive_the_device,
    mtu_and_up_are_set_at_every_attach,
    a_taken_port_is_an_error_of_its_own_and_leaves_no_interface,
    port_zero_takes_a_free_one,
    an_interface_of_another_kind_is_left_alone,
    impossible_names_and_mtus_are_refused_before_anything_is_made,
    a_deleted_interface_stops_the_device,
);

fn interface_index_addresses_and_routes_outlive_the_device<D: Open>() {
    let Pair { cable, a, b } = Pair::<D>::new();
    let mut echo = Echo::new(&cable, "10.99.0.1:0", "10.99.0.2:7");
    echo.ping(100);
    cable.a.ip("route add 10.77.0.0/16 dev wd-tun");
    let index = a.device.if_index();
    drop(a);
    assert!(cable.a.ip("route show").contains("10.77.0.0/16"));
    let a = Node::<D>::open(&cable.a, 1);
    assert_eq!(a.device.if_index(), index);
    assert!(cable.a.ip("route show").contains("10.77.0.0/16"));
    assert!(cable.a.ip("addr show dev wd-tun").contains("fd99::1/64"));
    a.upsert(peer(b.key, 2, Some(AT_B)));
    echo.ping(1392);
    // The other side may start too, although its session is with the device that is gone.
    drop(a);
    let a = Node::<D>::open(&cable.a, 1);
    a.upsert(peer(b.key, 2, None));
    block_on(b.device.start_handshake(&a.key)).unwrap();
    eventually("the new device has a session", || a.status(&b.key).last_handshake.is_some());
    echo.ping(100);
}

fn mtu_and_up_are_set_at_every_attach<D: Open>() {
    let namespace = Namespace::new("wd-a");
    let node = Node::<D>::open(&namespace, 1);
    assert_eq!(node.device.mtu(), 1420);
    drop(node);
    namespace.ip("link set wd-tun mtu 1300 down");
    let node = Node::<D>::open(&namespace, 1);
    let link = namespace.ip("link show wd-tun");
    assert!(link.contains("mtu 1420") && link.contains(",UP"), "{link}");
    assert_eq!(node.device.name(), DEVICE);
}

fn a_taken_port_is_an_error_of_its_own_and_leaves_no_interface<D: Open>() {
    let namespace = Namespace::new("wd-a");
    for taken in ["0.0.0.0:21820", "[::]:21820", "127.0.0.1:21820"] {
        let _owner = namespace.bind(taken);
        let error = open_error::<D>(&namespace, config(1));
        assert!(matches!(error, DeviceError::PortTaken { port: 21820 }), "{error}");
        assert!(error.to_string().contains("21820"), "{error}");
    }
    assert!(!namespace.ip("link show").contains(DEVICE));
    // Two devices can't share a port either.
    let _first = Node::<D>::open(&namespace, 1);
    let error = open_error::<D>(&namespace, DeviceConfig { name: "wd-tun2".into(), ..config(2) });
    assert!(matches!(error, DeviceError::PortTaken { .. }), "{error}");
}

fn port_zero_takes_a_free_one<D: Open>() {
    let namespace = Namespace::new("wd-a");
    let any = DeviceConfig { listen_port: 0, ..config(1) };
    assert_ne!(Node::<D>::of(&namespace, any).device.listen_port(), 0);
}

fn an_interface_of_another_kind_is_left_alone<D: Open>() {
    let namespace = Namespace::new("wd-a");
    for [make, unmake, found] in D::FOREIGN {
        namespace.ip(make);
        let before = namespace.ip("-d link show");
        let error = open_error::<D>(&namespace, config(1));
        assert!(matches!(error, DeviceError::NameTaken { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(found) && text.contains("wd-tun"), "{text}");
        assert_eq!(namespace.ip("-d link show"), before);
        namespace.ip(unmake);
    }
}

fn impossible_names_and_mtus_are_refused_before_anything_is_made<D: Open>() {
    let namespace = Namespace::new("wd-a");
    let mut long = config(1);
    long.name = "a-name-that-is-too-long".into();
    assert!(matches!(open_error::<D>(&namespace, long), DeviceError::BadName(_)));
    let mut small = config(1);
    small.mtu = 1279;
    assert!(matches!(open_error::<D>(&namespace, small), DeviceError::BadMtu(1279)));
    assert!(!namespace.ip("link show").contains(DEVICE));
}

fn a_deleted_interface_stops_the_device<D: Open>() {
    let cable = Cable::new();
    let node = Node::<D>::open(&cable.a, 1);
    cable.a.ip("link del wd-tun");
    let error = lab::recv(&node.device).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let error = block_on(node.device.apply(&Delta::default())).unwrap_err();
    assert!(matches!(error, DeviceError::Stopped), "{error}");
    drop(node);
    // And a new one can be made at once.
    Node::<D>::open(&cable.a, 1);
}
