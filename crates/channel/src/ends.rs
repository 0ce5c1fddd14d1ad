//! The two halves of an open channel, and the task that writes.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsStream;
use wire::control::{ToNode, ToRelay};
use wire::relay::AllocationId;

use crate::message::{Frames, Message};
use crate::packets::Packets;
use crate::queue::Queue;
use crate::room::Room;
use crate::{RecvError, SendError};

/// How often a node shows that it is there, where the transport does not do so by itself.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// Silence after which the other end counts as gone: three times the keepalive.
pub const IDLE: Duration = Duration::from_secs(15);

/// Time for what was said last, when a channel is closed. Who takes longer is not reading.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

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

/// What a [`Receiver`] has heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<In = ToNode> {
    /// A message that is no packet.
    Message(In),
    /// Packets, which are where they were asked for.
    Packets,
}

/// Hears things.
#[derive(Debug)]
pub struct Receiver<In = ToNode> {
    reader: Reader,
    frames: Frames,
    queue: Arc<Queue>,
    /// When silence has lasted too long; nothing where the transport has a limit of its own.
    idle_at: Option<Instant>,
    is_over: bool,
    messages: PhantomData<fn() -> In>,
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

#[derive(Debug)]
enum Reader {
    Quic(quinn::Connection, quinn::RecvStream),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

#[derive(Debug)]
enum Writer {
    Quic(quinn::Connection, quinn::SendStream),
    Tls(WriteHalf<TlsStream<TcpStream>>),
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
    pub(crate) fn tls(
        stream: TlsStream<TcpStream>,
        remote: SocketAddr,
        keepalive: Option<&Out>,
        room: &Arc<Room>,
    ) -> Self {
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
        let idle_at = matches!(reader, Reader::Tls(_)).then(|| Instant::now() + IDLE);
        tokio::spawn(write(Arc::clone(&queue), writer, keepalive));
        let receiver = Receiver {
            reader,
            frames: Frames::default(),
            queue: Arc::clone(&queue),
            idle_at,
            is_over: false,
            messages: PhantomData,
        };
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

impl<In: Message> Receiver<In> {
    /// The next message; `None` when the channel was closed, by either end. May be dropped at any time without loss.
    ///
    /// # Errors
    /// When the other end says what is no message, is silent for too long, or is lost. The channel has ended then.
    pub async fn recv(&mut self) -> Result<Option<In>, RecvError> {
        if self.is_over {
            return Ok(None);
        }
        let result = self.next().await;
        self.watch(result)
    }

    /// The next message that is no packet, or all packets that are here before it, up to a turn's worth. Packets go where the argument
    /// says, behind what is there. As [`Self::recv`] otherwise; for channels that carry much.
    ///
    /// # Errors
    /// Those of [`Self::recv`].
    pub async fn hear(&mut self, packets: &mut Packets) -> Result<Option<Heard<In>>, RecvError> {
        if self.is_over {
            return Ok(None);
        }
        let result = self.next_or_packets(packets).await;
        self.watch(result)
    }

    /// Ends the channel unless there was something to hear.
    fn watch<T>(&mut self, result: Result<Option<T>, RecvError>) -> Result<Option<T>, RecvError> {
        if !matches!(result, Ok(Some(_))) {
            self.is_over = true;
            self.queue.end();
        }
        result
    }

    async fn next(&mut self) -> Result<Option<In>, RecvError> {
        loop {
            if let Some(message) = self.frames.next()? {
                if let Some(message) = self.unless_keepalive(message) {
                    return Ok(Some(message));
                }
            } else if !self.read().await? {
                return Ok(None);
            }
        }
    }

    async fn next_or_packets(&mut self, packets: &mut Packets) -> Result<Option<Heard<In>>, RecvError> {
        loop {
            // Before each message, keepalives too: what is behind one may be packets.
            self.frames.packets::<In>(packets)?;
            if !packets.is_empty() {
                return Ok(Some(Heard::Packets));
            }
            if let Some(message) = self.frames.next()? {
                if let Some(message) = self.unless_keepalive(message) {
                    return Ok(Some(Heard::Message(message)));
                }
            } else if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// The message, unless it is a keepalive, which is answered here if it asks.
    fn unless_keepalive(&self, message: In) -> Option<In> {
        if !message.is_keepalive() {
            return Some(message);
        }
        if In::IS_ASKED {
            // No room for it: then the other end does not read and is about to be closed.
            let _ = self.queue.push(&ToNode::Pong);
        }
        None
    }

    /// Reads once; `false` at the end.
    async fn read(&mut self) -> Result<bool, RecvError> {
        let room = self.frames.room();
        let read = async {
            match &mut self.reader {
                Reader::Quic(_, stream) => stream.read_buf(room).await,
                Reader::Tls(stream) => stream.read_buf(room).await,
            }
        };
        let read = tokio::select! {
            read = read => read,
            () = self.queue.ended() => return Ok(false),
            () = passed(self.idle_at) => return Err(RecvError::Idle),
        };
        match read {
            Ok(0) if self.frames.is_empty() => Ok(false),
            Ok(0) => Err(RecvError::Truncated),
            Ok(length) => {
                self.frames.came(length);
                self.idle_at = self.idle_at.map(|_| Instant::now() + IDLE);
                Ok(true)
            }
            Err(error) => self.lost(error),
        }
    }

    /// What an error of the transport means.
    fn lost(&self, error: std::io::Error) -> Result<bool, RecvError> {
        use quinn::ConnectionError::{ApplicationClosed, LocallyClosed, TimedOut};
        let Reader::Quic(connection, _) = &self.reader else { return Err(RecvError::Lost(error)) };
        match connection.close_reason() {
            Some(ApplicationClosed(_) | LocallyClosed) if self.frames.is_empty() => Ok(false),
            Some(ApplicationClosed(_) | LocallyClosed) => Err(RecvError::Truncated),
            Some(TimedOut) => Err(RecvError::Idle),
            _ => Err(RecvError::Lost(error)),
        }
    }
}

async fn passed(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Writes until the channel is closed and everything is written, or nobody takes it.
async fn write(queue: Arc<Queue>, mut writer: Writer, keepalive: Option<Vec<u8>>) {
    let grace = async {
        queue.closed().await;
        tokio::time::sleep(CLOSE_GRACE).await;
    };
    tokio::select! {
        () = write_all(&queue, &mut writer, keepalive) => {}
        () = grace => {}
        () = queue.ended() => {}
    }
    queue.end();
    if let Writer::Quic(connection, _) = &writer {
        connection.close(quinn::VarInt::from_u32(0), b"");
    }
}

async fn write_all(queue: &Queue, writer: &mut Writer, keepalive: Option<Vec<u8>>) {
    let mut beat = tokio::time::interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let bytes = match &keepalive {
            None => queue.take().await,
            Some(keepalive) => tokio::select! {
                bytes = queue.take() => bytes,
                _ = beat.tick() => Some(keepalive.clone()),
            },
        };
        let Some(bytes) = bytes else { break };
        if writer.write(&bytes).await.is_err() {
            return;
        }
    }
    writer.finish().await;
}

impl Writer {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Quic(_, stream) => Ok(stream.write_all(bytes).await?),
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Says that nothing more comes. Over QUIC it waits until the other end has everything: closing the connection would outrun it.
    async fn finish(&mut self) {
        match self {
            Self::Quic(_, stream) => {
                if stream.finish().is_ok() {
                    let _ = stream.stopped().await;
                }
            }
            Self::Tls(stream) => drop(stream.shutdown().await),
        }
    }
}
