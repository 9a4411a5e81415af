//! A TCP connection that can be looked at while somebody else owns it: a peer that has closed it, or has said something
//! unasked, shows before the owner's task gets to know.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The connection. Whoever reads, writes or looks is on one thread, so its lock is never waited for.
#[derive(Debug)]
pub struct Watched(Arc<Mutex<TcpStream>>);

/// Looks at a connection without keeping it open.
#[derive(Clone, Debug)]
pub struct Watcher(Weak<Mutex<TcpStream>>);

impl Watched {
    /// A connection, and the way to look at it.
    pub fn new(stream: TcpStream) -> (Self, Watcher) {
        let stream = Arc::new(Mutex::new(stream));
        let watcher = Watcher(Arc::downgrade(&stream));
        (Self(stream), watcher)
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// The connection is open, and nothing has come that was not read.
    pub fn is_quiet(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return false };
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = SockRef::from(&*stream).peek(&mut [MaybeUninit::uninit(); 1]);
        seen.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Watched, Watcher, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let (watched, watcher) = Watched::new(near);
        (watched, watcher, far)
    }

    #[tokio::test]
    async fn a_peer_that_speaks_or_leaves_is_seen_at_once() {
        let (_near, watcher, mut far) = pair().await;
        assert!(watcher.is_quiet());
        far.write_all(b"x").await.unwrap();
        assert!(!watcher.is_quiet());

        let (_near, watcher, far) = pair().await;
        drop(far);
        assert!(!watcher.is_quiet());
    }

    #[tokio::test]
    async fn looking_does_not_keep_a_connection_open() {
        let (near, watcher, far) = pair().await;

        drop(near);

        assert!(!watcher.is_quiet());
        far.readable().await.unwrap();
        assert_eq!(far.try_read(&mut [0; 1]).unwrap(), 0);
    }
}
