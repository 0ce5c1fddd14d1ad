//! An open channel: the half that says things. The half that hears and the task that writes are beside it.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_rustls::TlsStream;
use wire::control::{ToNode, ToRelay};
use wire::relay::AllocationId;

use crate::SendError;
use crate::ahead::Ahead;
use crate::message::Message;
use crate::queue::Queue;
use crate::room::Room;

mod receiver;
mod writer;

use receiver::Reader;
pub use receiver::{Heard, IDLE, Receiver};
pub use writer::KEEPALIVE;
use writer::{Writer, write};

/// What carries a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP, where UDP does not pass.
    Tls,
}

/// An open channel: a node's, unless other types of messages are given.
#[derive(Debug)]
pub struct Channel<Out = ToRelay, In = ToNode> {
    sender: Sender<Out>,
    receiver: Receiver<In>,
}

/// The relay's end of a channel.
pub type RelayChannel = Channel<ToNode, ToRelay>;

/// Says things. The channel is closed when all its senders are gone; what was said until then is still written.
#[derive(Debug)]
pub struct Sender<Out = ToRelay> {
    open: Arc<Open>,
    messages: PhantomData<fn(Out)>,
}

/// Hands packets over without keeping the channel open.
#[derive(Debug)]
pub struct Outlet<Out = ToRelay> {
    queue: Arc<Queue>,
    messages: PhantomData<fn(Out)>,
}

/// Closes the channel with the last sender.
#[derive(Debug)]
struct Open {
    queue: Arc<Queue>,
    far: Far,
}

#[derive(Debug)]
enum Far {
    Quic(quinn::Connection),
    Tls(SocketAddr),
}

impl<Out: Message, In: Message> Channel<Out, In> {
    pub(crate) fn quic(
        connection: quinn::Connection,
        send: quinn::SendStream,
        receive: quinn::RecvStream,
        room: &Arc<Room>,
    ) -> Self {
        let reader = Reader::Quic(connection.clone(), receive);
        Self::start(Far::Quic(connection.clone()), reader, Writer::Quic(connection, send), None, room)
    }

    /// With a keepalive if this end is to send one.
    pub(crate) fn tls(stream: TlsStream<Ahead>, remote: SocketAddr, keepalive: Option<&Out>, room: &Arc<Room>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let keepalive = keepalive.map(|message| {
            let mut bytes = Vec::new();
            message.append(&mut bytes);
            bytes
        });
        Self::start(Far::Tls(remote), Reader::Tls(reader), Writer::Tls(writer), keepalive, room)
    }

    fn start(far: Far, reader: Reader, writer: Writer, keepalive: Option<Vec<u8>>, room: &Arc<Room>) -> Self {
        let queue = Queue::new(room);
        tokio::spawn(write(Arc::clone(&queue), writer, keepalive));
        let receiver = Receiver::new(reader, Arc::clone(&queue));
        Self { sender: Sender { open: Arc::new(Open { queue, far }), messages: PhantomData }, receiver }
    }

    /// What carries it.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.sender.transport()
    }

    /// The half that says things.
    #[must_use]
    pub const fn sender(&self) -> &Sender<Out> {
        &self.sender
    }

    /// The half that hears things.
    pub const fn receiver_mut(&mut self) -> &mut Receiver<In> {
        &mut self.receiver
    }

    /// Both halves.
    #[must_use]
    pub fn split(self) -> (Sender<Out>, Receiver<In>) {
        (self.sender, self.receiver)
    }
}

impl<Out: Message> Sender<Out> {
    /// Says something, once there is room for it among what is not yet written. Dropped before it is ready, it has said nothing.
    ///
    /// # Errors
    /// When the channel has ended.
    pub async fn send(&self, message: &Out) -> Result<(), SendError> {
        self.open.queue.push_when_room(message).await
    }

    /// Says something, if there is room for it.
    ///
    /// # Errors
    /// When there is none because the other end does not read, or when the channel has ended.
    pub fn try_send(&self, message: &Out) -> Result<(), SendError> {
        self.open.queue.push(message)
    }

    /// A handle for packets alone, with which the channel does not stay open.
    #[must_use]
    pub fn outlet(&self) -> Outlet<Out> {
        Outlet { queue: Arc::clone(&self.open.queue), messages: PhantomData }
    }

    /// What carries the channel.
    #[must_use]
    pub fn transport(&self) -> Transport {
        match self.open.far {
            Far::Quic(_) => Transport::Quic,
            Far::Tls(_) => Transport::Tls,
        }
    }

    /// Where the other end is. A QUIC channel follows its node to a new address once that has shown that it receives there.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        let remote = match &self.open.far {
            Far::Quic(connection) => connection.remote_address(),
            Far::Tls(remote) => *remote,
        };
        SocketAddr::new(remote.ip().to_canonical(), remote.port())
    }
}

impl<Out> Clone for Sender<Out> {
    fn clone(&self) -> Self {
        Self { open: Arc::clone(&self.open), messages: PhantomData }
    }
}

impl<Out: Message> Outlet<Out> {
    /// Hands packets over. They leave behind all messages, in lanes of their own; where there is no room the oldest of the
    /// allocation are dropped, as a network would. Returns how many.
    ///
    /// # Errors
    /// When the channel has ended.
    pub fn offer<'a>(&self, packets: impl IntoIterator<Item = (AllocationId, &'a [u8])>) -> Result<usize, SendError> {
        self.queue.offer::<Out>(packets)
    }
}

impl<Out> Clone for Outlet<Out> {
    fn clone(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), messages: PhantomData }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.queue.close();
    }
}
