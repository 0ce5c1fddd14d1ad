//! A connection that reads ahead while much comes.
//!
//! TLS asks its connection for four kilobytes at a time, and each time is a system call. This asks the kernel for more once one such question was
//! answered in full, and answers the next ones from memory. A channel that says little, as most do, holds no memory for it.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of one reading ahead: what the other end writes at once, so that a turn of packets is one system call.
const AHEAD_LEN: usize = 64 * 1024;

/// A reading ahead that brought less than this was not worth it.
const LITTLE: usize = 4096;

/// A connection, and what it has said beyond what was asked for.
#[derive(Debug)]
pub(crate) struct Ahead<S = TcpStream> {
    stream: S,
    /// What nobody has asked for yet.
    bytes: BytesMut,
    /// Whether much comes.
    is_busy: bool,
}

impl<S> Ahead<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, bytes: BytesMut::new(), is_busy: false }
    }
}

impl<S: AsyncRead + Unpin> Ahead<S> {
    /// Reads past the memory, and notices when much comes.
    fn poll_past(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        self.is_busy = into.remaining() == 0 && into.filled().len() - before >= LITTLE;
        Poll::Ready(Ok(()))
    }

    /// Reads into the memory, of which there is none while nothing comes.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bytes.reserve(AHEAD_LEN);
        let read = pin!(self.stream.read_buf(&mut self.bytes)).poll(cx);
        if !matches!(read, Poll::Ready(Ok(1..))) {
            self.bytes = BytesMut::new();
        }
        self.is_busy = ready!(read)? >= LITTLE;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.bytes.is_empty() {
            // Whoever has room for as much needs no help.
            if !this.is_busy || into.remaining() >= AHEAD_LEN {
                this.bytes = BytesMut::new();
                return this.poll_past(cx, into);
            }
            ready!(this.poll_fill(cx))?;
        }
        let length = into.remaining().min(this.bytes.len());
        into.put_slice(&this.bytes[..length]);
        this.bytes.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    /// Asks as TLS does, until so many bytes are here. Returns them.
    async fn ask(ahead: &mut Ahead<tokio::io::DuplexStream>, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            let mut piece = [0; LITTLE];
            let length = ahead.read(&mut piece).await.expect("an open stream");
            got.extend_from_slice(&piece[..length]);
        }
        got
    }

    #[tokio::test]
    async fn what_is_read_ahead_comes_in_order_and_whole() {
        let (mut far, near) = duplex(1 << 20);
        let mut ahead = Ahead::new(near);
        let bytes: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
        far.write_all(&bytes).await.expect("room");
        assert_eq!(ask(&mut ahead, bytes.len()).await, bytes);
        drop(far);
        assert_eq!(ahead.read(&mut [0; LITTLE]).await.expect("an end"), 0);
    }

    /// Asks while nothing is there.
    async fn ask_in_vain(ahead: &mut Ahead<tokio::io::DuplexStream>) {
        let mut piece = [0; LITTLE];
        tokio::select! {
            biased;
            read = ahead.read(&mut piece) => panic!("{read:?}"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn memory_is_held_for_who_says_much_and_while_it_does() {
        let (mut far, near) = duplex(1 << 20);
        let mut ahead = Ahead::new(near);
        for _ in 0..10 {
            far.write_all(&[1; 500]).await.expect("room");
            ask(&mut ahead, 500).await;
            assert_eq!(ahead.bytes.capacity(), 0);
        }
        far.write_all(&[2; 200_000]).await.expect("room");
        ask(&mut ahead, 24 * LITTLE).await;
        assert!(ahead.bytes.capacity() > 0);
        ask(&mut ahead, 200_000 - 24 * LITTLE).await;
        ask_in_vain(&mut ahead).await;
        assert_eq!(ahead.bytes.capacity(), 0);
    }

    #[tokio::test]
    async fn one_question_reads_more_than_it_asked_for() {
        let (mut far, near) = duplex(3 * LITTLE);
        let mut ahead = Ahead::new(near);
        far.write_all(&[4; 3 * LITTLE]).await.expect("room");
        // The first shows that much comes, the second takes all that is there.
        ask(&mut ahead, LITTLE).await;
        ask(&mut ahead, LITTLE).await;
        assert_eq!(ahead.bytes.len(), LITTLE);
    }
}
