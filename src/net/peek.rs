//! Waits for bytes of a socket that somebody looks at without taking them.

use std::io;

use rustix::io::ioctl_fionread;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Waits until more than `seen` bytes wait in the socket.
///
/// # Errors
///
/// `UnexpectedEof` when the peer sends no more.
pub async fn wait_for_more(socket: &TcpStream, seen: usize) -> io::Result<()> {
    wait_for(socket, seen + 1).await
}

/// Waits until `needed` bytes wait in the socket. Looking takes nothing away, so the socket stays readable and waiting for
/// that alone would spin.
///
/// # Errors
///
/// `UnexpectedEof` when the peer sends no more.
pub async fn wait_for(socket: &TcpStream, needed: usize) -> io::Result<()> {
    loop {
        let ready = socket.ready(Interest::READABLE).await?;
        let look = || match ioctl_fionread(socket)? {
            waiting if waiting >= needed as u64 => Ok(()),
            _ if ready.is_read_closed() => Err(io::ErrorKind::UnexpectedEof.into()),
            // Said inside of `try_io` this makes the runtime wait for the next packet.
            _ => Err(io::ErrorKind::WouldBlock.into()),
        };
        match socket.try_io(Interest::READABLE, look) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// Both ends of a connection.
    pub(in crate::net) async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn it_waits_for_the_next_byte_and_for_the_end() {
        let (mut client, server) = pair().await;
        client.write_all(b"a").await.unwrap();
        wait_for_more(&server, 0).await.unwrap();

        assert!(timeout(Duration::from_millis(20), wait_for_more(&server, 1)).await.is_err());
        let (more, written) = tokio::join!(wait_for_more(&server, 1), client.write_all(b"b"));
        assert!(more.is_ok() && written.is_ok());
        let (more, closed) = tokio::join!(wait_for_more(&server, 2), client.shutdown());
        assert_eq!(more.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        closed.unwrap();
        wait_for_more(&server, 1).await.unwrap();
    }
}
