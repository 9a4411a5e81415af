//! Plain, server-TLS or client-TLS bytes as one type.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use super::watched::Watched;

/// Vectored writes up to this size are joined: copying is cheaper than a list of buffers for the kernel to walk.
const JOINED: usize = 2048;

/// A connection in either direction.
#[derive(Debug)]
pub enum Stream {
    /// Bytes as they are.
    Plain(TcpStream),
    /// A client that we terminate TLS for.
    Server(Box<server::TlsStream<TcpStream>>),
    /// An upstream in clear.
    Upstream(Watched),
    /// An upstream that we speak TLS to.
    Client(Box<client::TlsStream<Watched>>),
}

impl Stream {
    /// The socket below a client's stream.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Server(stream) => Some(stream.get_ref().0),
            Self::Upstream(_) | Self::Client(_) => None,
        }
    }
}

macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Server(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
            Stream::Upstream(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Client(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, buffer))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        match buffers {
            [only] => self.poll_write(cx, only),
            _ if total <= JOINED => {
                let mut joined = [0; JOINED];
                let mut end = 0;
                for buffer in buffers {
                    joined[end..end + buffer.len()].copy_from_slice(buffer);
                    end += buffer.len();
                }
                self.poll_write(cx, &joined[..end])
            }
            _ => each!(self, stream => stream.poll_write_vectored(cx, buffers)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Server(stream) => stream.is_write_vectored(),
            Self::Upstream(stream) => stream.is_write_vectored(),
            Self::Client(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}
