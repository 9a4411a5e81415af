//! Copies bytes both ways until one side ends or nothing moved for a while. Upgraded connections end up here.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

const BUFFER: usize = 16 * 1024;

/// Bytes that have moved, also when the relay ends by an error or is dropped.
#[derive(Debug, Default)]
pub struct Moved {
    from_a: AtomicU64,
    from_b: AtomicU64,
}

impl Moved {
    /// Bytes that `a` has sent.
    pub fn from_a(&self) -> u64 {
        self.from_a.load(Ordering::Relaxed)
    }

    /// Bytes that `b` has sent.
    pub fn from_b(&self) -> u64 {
        self.from_b.load(Ordering::Relaxed)
    }
}

/// Relays between `a` and `b` and counts what moves. A half-closed direction stays half-closed.
///
/// # Errors
///
/// The first error of either side; `TimedOut` after `idle` without a byte in either direction.
pub async fn relay<A, B>(a: A, b: B, idle: Duration, moved: &Moved) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (a_read, a_write) = tokio::io::split(a);
    let (b_read, b_write) = tokio::io::split(b);
    let activity = Activity::new();
    let both = async {
        let up = copy(a_read, b_write, &moved.from_a, &activity);
        let down = copy(b_read, a_write, &moved.from_b, &activity);
        tokio::try_join!(up, down).map(|_| ())
    };
    tokio::select! {
        copied = both => copied,
        () = activity.idle_for(idle) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// When the last byte moved. One timer looks at it, so that moving bytes costs no timer.
struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn note(&self) {
        self.last.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn idle_for(&self, limit: Duration) {
        let mut timer = pin!(tokio::time::sleep(limit));
        loop {
            timer.as_mut().await;
            let until = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if until <= Instant::now() {
                return;
            }
            timer.as_mut().reset(until);
        }
    }
}

async fn copy<R, W>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    moved: &AtomicU64,
    activity: &Activity,
) -> io::Result<()>
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        moved.fetch_add(read as u64, Ordering::Relaxed);
        activity.note();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_a_relay_open_and_silence_ends_it() {
        let (mut client, left) = tokio::io::duplex(64);
        let (right, mut server) = tokio::io::duplex(64);
        let moved = Moved::default();
        let relay = relay(left, right, Duration::from_secs(10), &moved);
        let talk = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                client.write_all(b"ping").await.unwrap();
                let mut seen = [0; 4];
                server.read_exact(&mut seen).await.unwrap();
            }
            std::future::pending::<()>().await;
        };

        let ended = tokio::select! { ended = relay => ended, () = talk => unreachable!() };

        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_half_closed_direction_leaves_the_other_open() {
        let (mut client, left) = tokio::io::duplex(64);
        let (right, mut server) = tokio::io::duplex(64);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut seen = Vec::new();
            server.read_to_end(&mut seen).await.unwrap();
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).await.unwrap();
            (seen, back)
        };

        let moved = Moved::default();
        let (ended, (seen, back)) = tokio::join!(relay(left, right, Duration::from_secs(5), &moved), talk);

        assert_eq!((seen.as_slice(), back.as_slice()), (&b"question"[..], &b"answer"[..]));
        ended.unwrap();
        assert_eq!((moved.from_a(), moved.from_b()), (8, 6));
    }
}
