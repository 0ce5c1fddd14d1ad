//! Junk at the port costs no memory. This file has an allocator of its own that counts.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use support::Bench;
use wire::probe::Probe;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, hence from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_hundred_thousand_junk_datagrams_change_nothing_and_allocate_nothing() {
    let mut bench = Bench::new(true);
    bench.connect("203.0.113.7:21820");
    bench.events();
    let (before, due) = (bench.engine.snapshot(), bench.engine.poll_timeout());
    let tx = bench.next_tx();
    let mut stranger = bench.seal(tx, &Probe::Ping);
    stranger[28] ^= 0xff;
    let junk = [Vec::new(), vec![0; 20], vec![0xff; 1500], stranger];
    let datagrams: Vec<_> = (0..100_000).map(|n| junk[n % junk.len()].clone()).collect();

    let counted = ALLOCATIONS.with(Cell::get);
    for payload in datagrams {
        bench.receive_from(payload);
    }
    assert_eq!(ALLOCATIONS.with(Cell::get), counted);
    assert_eq!(bench.engine.snapshot(), before);
    assert_eq!(bench.engine.poll_timeout(), due);
    let stats = bench.engine.stats();
    assert_eq!(stats.dropped_junk + stats.dropped_unknown_key, 100_000);
    assert!(stats.dropped_unknown_key >= 25_000);
}
