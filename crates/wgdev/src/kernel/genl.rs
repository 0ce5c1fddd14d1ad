//! The socket to WireGuard's generic netlink family.

use nlink::{Connection, Generic};
use wire::key::PrivateKey;

use super::{
    dump::Dump,
    message::{self, Entry, command, device},
};
use crate::DeviceError;

/// Dumps in a row that a change in their midst may spoil. We make no change meanwhile, so it is somebody else's, and
/// nobody changes a device that often.
const DUMP_ATTEMPTS: usize = 10;

/// The family, for one interface or any.
pub(super) struct Genl {
    connection: Connection<Generic>,
    family: u16,
}

/// Settings of the device itself; `None` leaves one as it is.
#[derive(Default)]
pub(super) struct Settings<'a> {
    /// Another than before ends all sessions.
    pub(super) private_key: Option<&'a PrivateKey>,
    pub(super) listen_port: Option<u16>,
    pub(super) fwmark: Option<u32>,
}

impl Settings<'_> {
    pub(super) fn is_empty(&self) -> bool {
        let Self { private_key, listen_port, fwmark } = self;
        private_key.is_none() && listen_port.is_none() && fwmark.is_none()
    }
}

impl Genl {
    /// Finds the family. Asking for it makes the kernel load the module, if it has it and may.
    pub(super) async fn connect() -> Result<Self, DeviceError> {
        let doing = "open a generic netlink socket";
        let connection = Connection::<Generic>::new().map_err(failed(doing))?;
        let family = connection.get_family_id(message::FAMILY).await.map_err(|error| {
            if error.is_not_found() {
                DeviceError::NoKernelWireGuard { found: "one without its netlink family".into() }
            } else {
                failed("look up WireGuard's netlink family")(error)
            }
        })?;
        Ok(Self { connection, family })
    }

    pub(super) async fn dump(&self, if_index: u32) -> nlink::Result<Dump> {
        Ok(Dump::parse(&self.read(if_index).await?))
    }

    /// The messages of a dump that nothing came between.
    pub(super) async fn read(&self, if_index: u32) -> nlink::Result<Vec<Vec<u8>>> {
        let mut attempt = 1;
        loop {
            let messages = self.connection.dump_command(self.family, command::GET_DEVICE, message::VERSION, |m| {
                m.append_attr_u32(device::IF_INDEX, if_index);
            });
            match messages.await {
                Err(error) if error.is_dump_interrupted() && attempt < DUMP_ATTEMPTS => attempt += 1,
                messages => return messages,
            }
        }
    }

    pub(super) async fn set_device(&self, if_index: u32, settings: &Settings<'_>) -> nlink::Result<()> {
        let Settings { private_key, listen_port, fwmark } = settings;
        let set = self.connection.command(self.family, command::SET_DEVICE, message::VERSION, |m| {
            m.append_attr_u32(device::IF_INDEX, if_index);
            if let Some(key) = private_key {
                m.append_attr(device::PRIVATE_KEY, key.expose_bytes());
            }
            if let Some(port) = listen_port {
                m.append_attr_u16(device::LISTEN_PORT, *port);
            }
            if let Some(mark) = fwmark {
                m.append_attr_u32(device::FWMARK, *mark);
            }
        });
        set.await.map(|_| ())
    }

    /// Does with each peer what its entry says; the kernel does all or, when it refuses one, those before it.
    pub(super) async fn set_peers(&self, if_index: u32, entries: &[Entry]) -> nlink::Result<()> {
        let set = self.connection.command(self.family, command::SET_DEVICE, message::VERSION, |m| {
            m.append_attr_u32(device::IF_INDEX, if_index);
            message::write_peers(m, entries);
        });
        set.await.map(|_| ())
    }
}

/// The error of a request about an interface, which may have been deleted.
pub(super) fn failed(doing: &'static str) -> impl FnOnce(nlink::Error) -> DeviceError {
    move |error| {
        if error.is_no_device() {
            return DeviceError::Stopped;
        }
        DeviceError::Io { doing, source: std::io::Error::other(error) }
    }
}
