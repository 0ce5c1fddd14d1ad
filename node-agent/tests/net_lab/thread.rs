//! The few system calls that put a thread of a test into a namespace with an agent's privileges.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Puts the calling thread into the named network namespace.
pub fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    // SAFETY: the descriptor is open for the whole call, and setns changes only the calling thread.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Leaves the calling thread what the agent's container has: CAP_NET_ADMIN and CAP_NET_RAW, and `/proc/sys` read-only.
pub fn become_agent() -> io::Result<()> {
    // SAFETY: a mount namespace of its own for this thread; no memory is shared with the kernel.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(None, "/", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(Some("/proc/sys"), "/proc/sys", libc::MS_BIND)?;
    mount(None, "/proc/sys", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)?;
    keep_capabilities(&[12, 13])
}

fn mount(source: Option<&str>, target: &str, flags: libc::c_ulong) -> io::Result<()> {
    let source = CString::new(source.unwrap_or("none"))?;
    let target = CString::new(target)?;
    let nothing = std::ptr::null();
    // SAFETY: both strings are NUL-terminated and outlive the call; type and data may be null for these flags.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), nothing, flags, nothing.cast()) })
}

fn keep_capabilities(kept: &[u32]) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`, process 0 = the calling thread.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    let bits = kept.iter().fold(0u32, |bits, cap| bits | 1 << cap);
    let data = [bits, bits, 0, 0, 0, 0];
    // SAFETY: the layouts are those of capset(2), version 3: a header of two words and twice three words of data.
    check(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), data.as_ptr()) } as i32)
}

/// Lets an unconnected peer's ICMP error fail the next read of a UDP socket, soft errors included.
pub fn report_errors(socket: &UdpSocket, v6: bool) -> io::Result<()> {
    let (level, name) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    let on: libc::c_int = 1;
    // SAFETY: the value is an int that outlives the call, and its size is given.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), 4) })
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this test runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}
