//! The half that hears, and what that means for the channel.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::time::Instant;
use tokio_rustls::TlsStream;
use wire::control::ToNode;

use crate::RecvError;
use crate::ahead::Ahead;
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
    /// What the last read came to, if packets that were here before it were handed over first.
    after: Option<Result<bool, RecvError>>,
    messages: PhantomData<fn() -> In>,
}

#[derive(Debug)]
pub(super) enum Reader {
    Quic(quinn::Connection, quinn::RecvStream),
    Tls(ReadHalf<TlsStream<Ahead>>),
}

impl<In: Message> Receiver<In> {
    pub(super) fn new(reader: Reader, queue: Arc<Queue>) -> Self {
        let idle_at = matches!(reader, Reader::Tls(_)).then(|| Instant::now() + IDLE);
        Self { reader, frames: Frames::default(), queue, idle_at, is_over: false, after: None, messages: PhantomData }
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
            let taken = self.frames.packets::<In>(packets);
            if !packets.is_empty() {
                // What is wrong behind them is so the next time too.
                if taken.is_ok() {
                    self.gather(packets).await;
                }
                return Ok(Some(Heard::Packets));
            }
            taken?;
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

    /// Adds what is here already, without waiting: TLS hands over one record at a time, and whoever takes packets has work with each turn.
    async fn gather(&mut self, packets: &mut Packets) {
        while !packets.is_full() && self.frames.wants_more() {
            let read = {
                let mut read = pin!(self.reader.read(self.frames.room()));
                poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await
            };
            let Poll::Ready(read) = read else { return };
            match self.came(read) {
                Ok(true) if self.frames.packets::<In>(packets).is_ok() => {}
                Ok(true) => return,
                end => {
                    self.after = Some(end);
                    return;
                }
            }
        }
    }

    /// Reads once; `false` at the end.
    async fn read(&mut self) -> Result<bool, RecvError> {
        if let Some(after) = self.after.take() {
            return after;
        }
        let read = tokio::select! {
            read = self.reader.read(self.frames.room()) => read,
            () = self.queue.ended() => return Ok(false),
            () = passed(self.idle_at) => return Err(RecvError::Idle),
        };
        self.came(read)
    }

    /// Takes note of a read; `false` at the end.
    fn came(&mut self, read: std::io::Result<usize>) -> Result<bool, RecvError> {
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

impl Reader {
    async fn read(&mut self, room: &mut bytes::BytesMut) -> std::io::Result<usize> {
        match self {
            Self::Quic(_, stream) => stream.read_buf(room).await,
            Self::Tls(stream) => stream.read_buf(room).await,
        }
    }
}

async fn passed(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
