//! HTTP/2 frames that carry nothing: PING, SETTINGS and their kin cost their sender nothing, and us an answer or a look.
//! hyper bounds the memory that they can take, but not how many of them it reads; this counts them by the headers of the
//! frames that pass by.

use std::time::Duration;

use tokio::time::Instant;

use super::frames::{CONTINUATION, DATA, Frame, Frames, HEADERS, RST_STREAM, WINDOW_UPDATE};

/// Frames without content in one [`WINDOW`]. A gRPC client that measures its line sends one PING for each round trip, a few
/// thousand a second at the very most; a flood sends hundreds of thousands, and this many cost a few hundredths of a core.
pub const MOST: u32 = 10_000;

/// Short enough to end a flood soon, long enough that a burst after a pause of the machine is none.
pub const WINDOW: Duration = Duration::from_secs(1);

/// What every HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// Follows the frames of one connection.
#[derive(Debug)]
pub struct Noise {
    frames: Frames,
    /// Without content, since then.
    empty: u32,
    since: Instant,
}

impl Noise {
    /// For a connection that begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self { frames: Frames::after(PREFACE), empty: 0, since: now }
    }

    /// These bytes came next; `left` is told each stream that the client resets. True when it is too much noise.
    pub fn heard(&mut self, bytes: &[u8], now: Instant, mut left: impl FnMut(u32)) -> bool {
        let before = self.empty;
        let empty = &mut self.empty;
        self.frames.follow(bytes, |frame| {
            *empty += u32::from(is_noise(frame));
            if frame.kind() == RST_STREAM {
                left(frame.stream());
            }
        });
        // Without noise the clock need not be asked.
        self.empty != before && self.is_too_much(now)
    }

    fn is_too_much(&mut self, now: Instant) -> bool {
        if now - self.since >= WINDOW {
            (self.since, self.empty) = (now, 1);
        }
        self.empty > MOST
    }
}

/// Requests, their bodies, their ends, and the window for what we send have limits of their own.
fn is_noise(frame: &Frame) -> bool {
    match frame.kind() {
        DATA => frame.length() == 0 && !frame.ends_stream(),
        CONTINUATION => frame.length() == 0,
        HEADERS | RST_STREAM | WINDOW_UPDATE => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::END_STREAM;
    use super::super::frames::tests::frame;
    use super::*;

    #[test]
    fn only_frames_without_content_are_noise() {
        for (kind, flags, length, expected) in [
            (DATA, 0, 5, 0),
            (DATA, 0, 0, 1),
            (DATA, END_STREAM, 0, 0),
            (HEADERS, 4, 20, 0),
            (2, 0, 5, 1),
            (RST_STREAM, 0, 4, 0),
            (4, 0, 0, 1),
            (6, 0, 8, 1),
            (7, 0, 8, 1),
            (WINDOW_UPDATE, 0, 4, 0),
            (CONTINUATION, 0, 0, 1),
            (CONTINUATION, 4, 9, 0),
            (0xfa, 0, 200, 1),
        ] {
            let now = Instant::now();
            let mut noise = Noise::new(now);
            let mut left = Vec::new();
            let bytes = [&[b'x'; PREFACE][..], &frame(kind, flags, 1, &vec![0xff; length])].concat();
            noise.heard(&bytes, now, |stream| left.push(stream));
            assert_eq!(noise.empty, expected, "{kind} {flags} {length}");
            assert_eq!(left.len(), usize::from(kind == RST_STREAM));
        }
    }

    #[test]
    fn too_much_is_too_much_within_a_window() {
        let start = Instant::now();
        let mut noise = Noise::new(start);
        let ping = frame(6, 0, 0, &[0; 8]);
        let mut heard = |bytes: &[u8], now| noise.heard(bytes, now, |_| ());
        assert!(!heard(&[b'x'; PREFACE], start));

        let first = (0..MOST).any(|_| heard(&ping, start));
        let later = heard(&ping, start + WINDOW);
        let flood = (0..=MOST).any(|_| heard(&ping, start + WINDOW));

        assert_eq!((first, later, flood), (false, false, true));
    }
}
