//! A persistent TUN interface.

mod control;

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use crate::{DeviceError, check::check_interface, error::TUN_PATH, userspace::vnet::HEADER_LEN};

/// One queue of the interface.
pub(super) struct Tun {
    queue: File,
    if_index: u32,
    udp_offload: bool,
}

impl Tun {
    /// Attaches to the interface of that name, creating it when there is none, and brings it up.
    pub(super) fn attach(name: &str, mtu: u16) -> Result<Self, DeviceError> {
        check_interface(name, mtu)?;
        let queue = open()?;
        let fd = queue.as_raw_fd();
        control::set_interface(fd, name).map_err(|error| explain_attach(name, error))?;
        control::set_persistent(fd).map_err(DeviceError::io("make the interface persistent"))?;
        control::set_header_len(fd, HEADER_LEN)
            .map_err(DeviceError::io("set the packet header length of the interface"))?;
        let udp_offload =
            control::set_offloads(fd).map_err(DeviceError::io("switch on the offloads of the interface"))?;
        let link = control::Link::new(name).map_err(DeviceError::io("open a control socket"))?;
        let if_index = link.index().map_err(DeviceError::io("read the index of the interface"))?;
        link.set_mtu(mtu).map_err(DeviceError::io("set the MTU of the interface"))?;
        link.set_up().map_err(DeviceError::io("bring the interface up"))?;
        Ok(Self { queue, if_index, udp_offload })
    }

    pub(super) fn if_index(&self) -> u32 {
        self.if_index
    }

    /// Whether the kernel takes and gives groups of UDP datagrams (since 6.2).
    pub(super) fn udp_offload(&self) -> bool {
        self.udp_offload
    }

    pub(super) fn fd(&self) -> RawFd {
        self.queue.as_raw_fd()
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.queue).read(buffer)
    }

    pub(super) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.queue).write_vectored(slices)
    }
}

/// Whether a read or write failed because the interface was deleted.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

fn open() -> Result<File, DeviceError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(TUN_PATH)
        .map_err(|error| explain_open(&error))
}

fn explain_open(error: &io::Error) -> DeviceError {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "load the module (modprobe tun) on the host, and mount the host's /dev/net folder into the container"
        }
        Some(libc::ENODEV | libc::ENXIO) => "the kernel has no TUN driver: load the module (modprobe tun) on the host",
        Some(libc::EPERM | libc::EACCES) => {
            "allow the character device 10:200 in the container's device rules; runc 1.2.0 to 1.2.3 forbid it, 1.2.4 and later don't"
        }
        _ => "see whether the host itself can open it",
    };
    DeviceError::TunUnavailable { found: error.to_string(), remedy }
}

fn explain_attach(name: &str, error: io::Error) -> DeviceError {
    let code = error.raw_os_error();
    if code == Some(libc::EPERM) {
        return DeviceError::TunUnavailable {
            found: "the right to create an interface is missing".into(),
            remedy: "add the capability NET_ADMIN to the process, in the user namespace that owns its network namespace",
        };
    }
    let driver = control::Link::new(name).and_then(|link| link.driver());
    let found = match (code, driver) {
        (Some(libc::EBUSY | libc::E2BIG), Ok(_)) => "one that another process has attached to".into(),
        (Some(libc::EINVAL | libc::EEXIST), Ok(driver)) => match (&*driver.name, &*driver.bus) {
            ("tun", "tun") => "a TUN interface with a single queue".into(),
            ("tun", bus) => format!("a {} interface", bus.to_uppercase()),
            (other, _) => format!("an interface of driver {other:?}"),
        },
        // Some drivers (dummy of old kernels) don't tell their name.
        (Some(libc::EINVAL | libc::EEXIST), Err(e)) if e.raw_os_error() != Some(libc::ENODEV) => {
            "an interface of another kind".into()
        }
        _ => {
            return DeviceError::Io { doing: "attach to the interface", source: error };
        }
    };
    DeviceError::NameTaken { name: name.into(), expected: "a persistent multi-queue TUN interface", found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_driver_says_which_runtime_forbids_it() {
        let text = explain_open(&io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(text.contains("/dev/net/tun"), "{text}");
        assert!(text.contains("runc 1.2.0 to 1.2.3"), "{text}");
        let text = explain_open(&io::Error::from_raw_os_error(libc::ENOENT)).to_string();
        assert!(text.contains("modprobe tun"), "{text}");
    }
}
