//! The half that hears, and what that means for the channel.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsStream;
use wire::control::ToNode;

use crate::RecvError;
use crate::message::{Frames, Message};
use crate::packets::Packets;
use crate::queue::Queue;

/// Silence after which the other end counts as gone: three times the keepalive.
pub const IDLE: Duration = Duration::from_secs(15);

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

#[derive(Debug)]
pub(super) enum Reader {
    Quic(quinn::Connection, quinn::RecvStream),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

impl<In: Message> Receiver<In> {
    pub(super) fn new(reader: Reader, queue: Arc<Queue>) -> Self {
        let idle_at = matches!(reader, Reader::Tls(_)).then(|| Instant::now() + IDLE);
        Self { reader, frames: Frames::default(), queue, idle_at, is_over: false, messages: PhantomData }
    }

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
