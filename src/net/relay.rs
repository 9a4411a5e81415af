//! Copies bytes both ways until one side ends, nothing moved for a while, or somebody says that it is over. Upgraded
//! connections end up here.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BUFFER: usize = 16 * 1024;

/// How long both sides have to end once they are told that it is over, and for how many bytes they are listened to.
pub const FAREWELL: Duration = Duration::from_millis(500);
const FAREWELL_BYTES: usize = 256 * 1024;

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

/// Relays between `a` and `b` and counts what moves. A half-closed direction stays half-closed. Once `over` is ready no
/// more is read; what has been read is written, and both sides are shut down in order.
///
/// # Errors
///
/// The first error of either side; `TimedOut` after `idle` without a byte in either direction.
pub async fn relay<A, B>(a: A, b: B, idle: Duration, over: impl Future<Output = ()>, moved: &Moved) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (a_read, a_write) = tokio::io::split(a);
    let (b_read, b_write) = tokio::io::split(b);
    let activity = Activity::new();
    let stop = CancellationToken::new();
    let both = async {
        let up = copy(a_read, b_write, &moved.from_a, &activity, &stop);
        let down = copy(b_read, a_write, &moved.from_b, &activity, &stop);
        tokio::try_join!(up, down).map(|_| ())
    };
    let farewell = async {
        over.await;
        stop.cancel();
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        copied = both => copied,
        () = activity.idle_for(idle) => Err(io::ErrorKind::TimedOut.into()),
        () = farewell => Err(io::ErrorKind::TimedOut.into()),
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
    stop: &CancellationToken,
) -> io::Result<()>
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let mut buffer = vec![0; BUFFER];
    let mut stopped = pin!(stop.cancelled());
    loop {
        let read = tokio::select! {
            biased;
            () = &mut stopped => break,
            read = from.read(&mut buffer) => read?,
        };
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        moved.fetch_add(read as u64, Ordering::Relaxed);
        activity.note();
    }
    to.shutdown().await?;
    // A socket that is closed over unread bytes resets the connection, and with it what has just been written.
    let mut left = FAREWELL_BYTES;
    while left > 0 {
        match from.read(&mut buffer).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_a_relay_open_and_silence_ends_it() {
        let (mut client, left) = tokio::io::duplex(64);
        let (right, mut server) = tokio::io::duplex(64);
        let moved = Moved::default();
        let relay = relay(left, right, Duration::from_secs(10), pending(), &moved);
        let talk = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                client.write_all(b"ping").await.unwrap();
                let mut seen = [0; 4];
                server.read_exact(&mut seen).await.unwrap();
            }
            pending::<()>().await;
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
        let (ended, (seen, back)) = tokio::join!(relay(left, right, Duration::from_secs(5), pending(), &moved), talk);

        assert_eq!((seen.as_slice(), back.as_slice()), (&b"question"[..], &b"answer"[..]));
        ended.unwrap();
        assert_eq!((moved.from_a(), moved.from_b()), (8, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_is_over_hands_on_what_it_has_read() {
        let (mut client, left) = tokio::io::duplex(64);
        // So small that the relay still holds most of what it has read.
        let (right, mut server) = tokio::io::duplex(4);
        let over = CancellationToken::new();
        let talk = async {
            client.write_all(b"a whole sentence").await.unwrap();
            let mut seen = vec![0; 4];
            server.read_exact(&mut seen).await.unwrap();
            over.cancel();
            client.write_all(b" and one that comes too late").await.unwrap();
            server.read_to_end(&mut seen).await.unwrap();
            server.shutdown().await.unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).await.unwrap();
            client.shutdown().await.unwrap();
            (seen, back)
        };

        let moved = Moved::default();
        let relay = relay(left, right, Duration::from_secs(5), over.cancelled(), &moved);
        let (ended, (seen, back)) = tokio::join!(relay, talk);

        ended.unwrap();
        assert_eq!((seen.as_slice(), back.as_slice()), (&b"a whole sentence"[..], &b""[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_takes_nothing_does_not_hold_up_the_end() {
        let (mut client, left) = tokio::io::duplex(64);
        let (right, _server) = tokio::io::duplex(4);
        client.write_all(b"a whole sentence").await.unwrap();
        let start = Instant::now();

        let over = tokio::time::sleep(Duration::from_secs(3));
        let ended = relay(left, right, Duration::from_secs(60), over, &Moved::default()).await;

        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_millis(), 3_500);
    }
}
