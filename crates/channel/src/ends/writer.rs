//! The task that writes.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsStream;

use crate::ahead::Ahead;
use crate::queue::Queue;

/// How often a node shows that it is there, where the transport does not do so by itself.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// Time for what was said last, when a channel is closed. Who takes longer is not reading.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) enum Writer {
    Quic(quinn::Connection, quinn::SendStream),
    Tls(WriteHalf<TlsStream<Ahead>>),
}

/// Writes until the channel is closed and everything is written, or nobody takes it.
pub(super) async fn write(queue: Arc<Queue>, mut writer: Writer, keepalive: Option<Vec<u8>>) {
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
