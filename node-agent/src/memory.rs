//! Memory that the process has and doesn't use.
#![allow(unsafe_code)]

/// Gives free memory back to the system, wherever in the heap it lies: the list of a large mesh is read into many times the
/// memory that it takes in the end, and the allocator by itself returns only the end of its heap.
pub fn give_back() {
    // SAFETY: takes a plain value, and is safe beside threads that allocate.
    unsafe { libc::malloc_trim(0) };
}
