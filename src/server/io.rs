//! The byte stream under hyper's server. It tells a slow client from a slow server by the connection's
//! [`Flow`]: a head has one limit, the pause between requests another, and a client that
//! does not read a third. One timer serves them all and is armed early rather than often. It also ends connections so that
//! nothing is lost: a quiet one when the process drains, and one whose client has not been read to its end.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::noise::Noise;
use super::resets::Resets;
use crate::config::ListenTimeouts;
use crate::net::stream::Stream;
use crate::proxy::connection::Flow;
use crate::shutdown::Drain;
use crate::telemetry::Telemetry;

/// What a client is told whose request head did not come in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 58\r\nconnection: close\r\n\r\n408 Request Timeout: the request head did not come in time";

/// A client that is still sending when its answer is complete is listened to for this long and for so many bytes: closing
/// earlier would reset the connection, and the reset would take the answer with it. More than a client writes before it
/// reads, less than an attack is worth.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 2 << 20;

/// How much of HTTP/2 is read at a time; as much as its reader asks for.
const FRAMES: usize = 8 * 1024;

/// When to look again at a connection that was to end and is not as quiet as it seemed.
const AGAIN: Duration = Duration::from_millis(50);

/// A client's stream with its time limits.
pub struct Guarded {
    io: TokioIo<Stream>,
    flow: Arc<Flow>,
    drain: Drain,
    limits: ListenTimeouts,
    http2: Option<Box<Http2>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the client is expected to say something.
    waiting_since: Instant,
    /// Since when a head is coming in.
    head_since: Option<Instant>,
    /// Since when the client does not take what we write.
    write_since: Option<Instant>,
    /// Since when the connection knows that the process drains.
    draining_since: Option<Instant>,
    /// We have said our last, and listen to the rest.
    farewell: Option<Farewell>,
    /// The rest of interim heads that are being written.
    interim: Bytes,
    served: u32,
    was_busy: bool,
}

/// What is followed of the frames of an HTTP/2 connection.
pub struct Http2 {
    noise: Noise,
    resets: Resets,
    telemetry: Arc<Telemetry>,
}

/// How long and how far a client is still listened to.
struct Farewell {
    until: Instant,
    left: usize,
}

/// The limit that counts now.
enum Due {
    Never,
    Idle(Instant),
    Head(Instant),
}

impl Http2 {
    /// Streams that are reset for a fault of their client are counted in `telemetry`.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { noise: Noise::new(Instant::now()), resets: Resets::default(), telemetry }
    }

    /// True when the client sends too many frames that carry nothing.
    fn heard(&mut self, bytes: &[u8]) -> bool {
        let resets = &mut self.resets;
        self.noise.heard(bytes, Instant::now(), |stream| resets.left(stream))
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let process = &self.telemetry.process;
        self.resets.wrote(bytes, |cause| process.rejected(cause));
    }
}

impl Guarded {
    /// Watches over `stream`, which carries HTTP/1 unless `http2` says how to look at it.
    pub fn new(
        stream: Stream,
        flow: Arc<Flow>,
        limits: ListenTimeouts,
        http2: Option<Box<Http2>>,
        drain: Drain,
    ) -> Self {
        let now = Instant::now();
        Self {
            io: TokioIo::new(stream),
            flow,
            drain,
            limits,
            http2,
            timer: None,
            waiting_since: now,
            head_since: None,
            write_since: None,
            draining_since: None,
            farewell: None,
            interim: Bytes::new(),
            served: 0,
            was_busy: false,
        }
    }

    /// Whether this error of a connection is that of a client that does not take its answer.
    pub fn is_untaken(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Untaken>())
    }

    /// Whether this error of a connection is that of a head that did not come in time.
    pub fn is_slow_head(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<SlowHead>())
    }

    fn is_http1(&self) -> bool {
        self.http2.is_none()
    }

    /// Reads HTTP/2 by way of a buffer of our own, as hyper's cannot be looked into.
    fn poll_read_frames(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [MaybeUninit::uninit(); FRAMES];
        let room = buffer.remaining().min(FRAMES);
        let mut read = ReadBuf::uninit(&mut scratch[..room]);
        ready!(Pin::new(self.io.inner_mut()).poll_read(cx, &mut read))?;
        let bytes = read.filled();
        if self.http2.as_mut().is_some_and(|http2| http2.heard(bytes)) {
            // hyper keeps no more of this error than its text, so the flow says what it is.
            self.flow.note_noise();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many frames that carry nothing")));
        }
        buffer.put_slice(bytes);
        self.note_answers();
        Poll::Ready(Ok(()))
    }

    /// Tells the connection's task what has been written of its answers, and whether more will be.
    fn note_answers(&self) {
        if let Some(http2) = &self.http2 {
            self.flow.note_answers(http2.resets.answered(), http2.resets.owes() || self.write_since.is_some());
        }
    }

    /// Bytes have come. Between requests they are the beginning of a head.
    fn note_read(&mut self) {
        if self.is_http1() && self.flow.busy() == 0 {
            self.catch_up();
            self.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// A request that has ended since the last look starts the pause anew.
    fn catch_up(&mut self) {
        let served = self.flow.served();
        if self.was_busy || served != self.served {
            self.was_busy = false;
            self.served = served;
            self.waiting_since = self.flow.last_end();
            self.head_since = None;
        }
    }

    fn due(&mut self) -> Due {
        if !self.is_http1() {
            return Due::Never;
        }
        if self.flow.busy() > 0 {
            self.was_busy = true;
            return Due::Never;
        }
        self.catch_up();
        match self.head_since {
            Some(since) => Due::Head(since + self.limits.header),
            None => Due::Idle(self.idle_until()),
        }
    }

    fn idle_until(&mut self) -> Instant {
        // Whoever connects is about to ask; whoever has asked may take a rest.
        let pause = if self.served == 0 { self.limits.header } else { self.limits.keepalive };
        let usual = self.waiting_since + pause;
        if !self.drain.has_started() {
            return usual;
        }
        let draining_since = *self.draining_since.get_or_insert_with(Instant::now);
        usual.min(draining_since.max(self.waiting_since) + self.drain.last_word())
    }

    /// Nothing is on its way in either direction, by the system's word: the runtime may not have heard of it yet.
    fn is_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit(); 1];
        let socket = self.io.inner().tcp();
        let has_come = socket.is_some_and(|tcp| SockRef::from(tcp).peek(&mut byte).is_ok_and(|length| length > 0));
        self.write_since.is_none() && !has_come
    }

    /// Pending until the client has been too slow; EOF when it was only idle.
    fn poll_read_limit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let due = self.due();
        let (Due::Idle(deadline) | Due::Head(deadline)) = due else {
            self.keep_looking(cx);
            return self.poll_write_limit(cx);
        };
        if self.poll_timer(cx, deadline).is_pending() {
            return self.poll_write_limit(cx);
        }
        if matches!(due, Due::Idle(_)) {
            if self.is_quiet() {
                return Poll::Ready(Ok(()));
            }
            return self.poll_timer(cx, Instant::now() + AGAIN).map(Ok);
        }
        // Whether the client still reads this does not matter, so one try is enough.
        let _ = Pin::new(self.io.inner_mut()).poll_write(cx, TOO_SLOW);
        let _ = Pin::new(self.io.inner_mut()).poll_flush(cx);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, SlowHead)))
    }

    /// Nobody reads when a request ends and none has come yet, so a timer must be left that looks at the pause after it.
    fn keep_looking(&mut self, cx: &mut Context<'_>) {
        let is_armed = self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_pending());
        if self.is_http1() && !is_armed {
            let _ = self.poll_timer(cx, Instant::now() + self.limits.keepalive);
        }
    }

    fn poll_write_limit<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(since) = self.write_since else { return Poll::Pending };
        if self.poll_timer(cx, since + self.limits.write_idle).is_pending() {
            return Poll::Pending;
        }
        self.flow.break_off();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Untaken)))
    }

    /// Ready once `deadline` has passed. A timer that is armed for an earlier moment is left as it is.
    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// The client has not been read to its end: a head that was refused, or an upload whose answer came early.
    fn is_unread(&mut self) -> bool {
        self.catch_up();
        self.is_http1() && (self.flow.is_unread() || self.head_since.is_some())
    }

    /// Ready once the client has ended too, or has been listened to for long enough.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [MaybeUninit::uninit(); 4096];
        while let Some(farewell) = self.farewell.as_mut().filter(|farewell| farewell.left > 0) {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match Pin::new(self.io.inner_mut()).poll_read(cx, &mut buffer) {
                Poll::Pending => {
                    let until = farewell.until;
                    return self.poll_timer(cx, until);
                }
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    farewell.left = farewell.left.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }

    /// Writes interim heads. hyper flushes at every turn of the connection, but never while an answer before is still in its
    /// buffer, so they land between two answers.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.interim.is_empty() {
                self.interim = self.flow.take_interim().into();
            }
            while !self.interim.is_empty() {
                let written = ready!(Pin::new(self.io.inner_mut()).poll_write(cx, &self.interim))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.interim.advance(written);
            }
            if self.flow.interim_written() {
                // The final head may wait for this.
                cx.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_since = None;
            self.note_answers();
            return written;
        }
        self.write_since.get_or_insert_with(Instant::now);
        self.note_answers();
        self.poll_write_limit(cx)
    }
}

/// Marks the error of an answer that the client did not take.
#[derive(Debug, thiserror::Error)]
#[error("the client took nothing of its answer for too long")]
struct Untaken;

/// Marks the error of a head that did not come in time; the kernel has time-outs of its own.
#[derive(Debug, thiserror::Error)]
#[error("the request head did not come in time")]
struct SlowHead;

/// A response that ends early must not look complete to a client that only waits for the end of the connection.
impl Drop for Guarded {
    fn drop(&mut self) {
        let is_cut = self.flow.is_broken() || self.drain.is_cut() && self.flow.busy() > 0;
        if let Some(tcp) = self.io.inner().tcp().filter(|_| is_cut) {
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Read for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = if this.is_http1() {
            Pin::new(&mut this.io).poll_read(cx, buffer)
        } else {
            this.poll_read_frames(cx, &mut buffer)
        };
        match read {
            Poll::Ready(result) => {
                this.note_read();
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_read_limit(cx),
        }
    }
}

impl Write for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buffer);
        if let (Some(http2), Poll::Ready(Ok(length))) = (&mut this.http2, &written) {
            http2.wrote(&buffer[..*length]);
        }
        this.wrote(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, buffers);
        if let (Some(http2), Poll::Ready(Ok(length))) = (&mut this.http2, &written) {
            let mut left = *length;
            for buffer in buffers {
                let taken = left.min(buffer.len());
                http2.wrote(&buffer[..taken]);
                left -= taken;
            }
        }
        this.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flow.has_interim() || !this.interim.is_empty() {
            let written = this.poll_interim(cx);
            if let Poll::Pending | Poll::Ready(Err(_)) = written {
                return this.wrote(cx, written);
            }
        }
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.wrote(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flow.is_broken() {
            // A clean end would say that the response was complete.
            return Poll::Ready(Ok(()));
        }
        if this.farewell.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            let left = if this.is_unread() { LINGER_BYTES } else { 0 };
            this.farewell = Some(Farewell { until: Instant::now() + LINGER, left });
        }
        this.poll_farewell(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_408_is_framed_right() {
        let text = std::str::from_utf8(TOO_SLOW).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();

        assert!(head.contains(&format!("content-length: {}", body.len())));
    }
}
