//! A relay's responder in a thread of its own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use relay::monitor::Metrics;
use relay::serve;
use tokio::sync::oneshot;

/// Serves until dropped.
pub struct Responder {
    /// Where it listens, in the order asked for.
    pub addresses: Vec<SocketAddr>,
    /// What it counted.
    pub metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Listens on these addresses.
    pub fn start(listen: &[&str]) -> Self {
        let listen: Vec<SocketAddr> = listen.iter().map(|text| text.parse().unwrap()).collect();
        let metrics = Arc::new(Metrics::new().unwrap());
        let counting = Arc::clone(&metrics);
        let (started, addresses) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let sockets = serve::bind(&listen).unwrap();
                let bound: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
                started.send(bound).unwrap();
                tokio::select! {
                    failed = serve::run(&sockets, &counting) => panic!("the responder failed: {failed:?}"),
                    _ = stopped => {}
                }
            });
        });
        let addresses = addresses.recv().expect("the responder starts");
        Self { addresses, metrics, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

/// Whether a missing tool fails the test rather than leaving it out.
pub fn lab_is_required() -> bool {
    std::env::var_os("REQUIRE_LAB").is_some_and(|value| value == "1")
}
