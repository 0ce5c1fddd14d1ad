//! For tests: what a value holds of the heap.
//!
//! A mesh has thousands of peers, so bytes of one peer are megabytes of an agent. Resident memory shows that late and with noise; what
//! a value holds is exact, and a test can bound it.
//!
//! A test binary makes [`Counting`] its global allocator and asks [`held`] what a value costs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What glibc's allocator puts in front of each piece, its smallest piece, and what it rounds up to, in bytes.
const HEADER: usize = 8;
const LEAST: usize = 32;
const STEP: usize = 16;

thread_local! {
    /// Bytes that this thread has taken and not given back, as the allocator rounds them. A thread that gives back what others took
    /// goes below zero.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with an account for each thread.
#[derive(Debug)]
pub struct Counting;

/// Makes a value; returns it with the bytes of the heap that this thread holds more than before.
pub fn held<T>(make: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    let value = make();
    (value, HELD.get() - before)
}

fn note(size: usize, sign: isize) {
    let piece = (size + HEADER).next_multiple_of(STEP).max(LEAST);
    HELD.set(HELD.get() + sign * piece.cast_signed());
}

#[expect(unsafe_code, reason = "an allocator is one")]
// SAFETY: every call is handed on as it is; the account beside it takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 1);
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(layout.size(), -1);
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(layout.size(), -1);
        note(size, 1);
        // SAFETY: as the caller has promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn what_is_held_is_counted_as_the_allocator_rounds_it() {
        let (value, bytes) = held(|| Box::new([0u8; 100]));
        assert_eq!(bytes, 112);
        assert_eq!(held(|| drop(value)).1, -112);
        let (mut list, bytes) = held(|| Vec::<u64>::with_capacity(1));
        assert_eq!(bytes, 32);
        assert_eq!(held(|| list.reserve_exact(100)).1, 816 - 32);
    }
}
