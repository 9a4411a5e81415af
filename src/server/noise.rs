//! HTTP/2 frames that carry nothing: PING, SETTINGS and their kin cost their sender nothing, and us an answer or a look.
//! hyper bounds the memory that they can take, but not how many of them it reads; this counts them by the headers of the
//! frames that pass by.

use std::time::Duration;

use tokio::time::Instant;

/// Frames without content in one [`WINDOW`]. A gRPC client that measures its line sends one PING for each round trip, a few
/// thousand a second at the very most; a flood sends hundreds of thousands, and this many cost a few hundredths of a core.
pub const MOST: u32 = 10_000;

/// Short enough to end a flood soon, long enough that a burst after a pause of the machine is none.
pub const WINDOW: Duration = Duration::from_secs(1);

/// What every HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// The header of a frame (RFC 9113, 4.1).
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// Follows the frames of one connection.
#[derive(Debug)]
pub struct Noise {
    /// Bytes until the next header begins.
    skip: usize,
    header: [u8; HEADER],
    /// How much of the header is there.
    filled: usize,
    frames: u32,
    since: Instant,
}

impl Noise {
    /// For a connection that begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self { skip: PREFACE, header: [0; HEADER], filled: 0, frames: 0, since: now }
    }

    /// These bytes came next. True when it is too much.
    pub fn heard(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let before = self.frames;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < HEADER {
                break;
            }
            self.filled = 0;
            self.skip = self.length();
            self.frames += u32::from(self.is_noise());
        }
        // Without noise the clock need not be asked.
        self.frames != before && self.is_too_much(now)
    }

    fn is_too_much(&mut self, now: Instant) -> bool {
        if now - self.since >= WINDOW {
            (self.since, self.frames) = (now, 1);
        }
        self.frames > MOST
    }

    fn length(&self) -> usize {
        let [high, middle, low, ..] = self.header;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    /// Requests, their bodies, their ends, and the window for what we send have limits of their own.
    fn is_noise(&self) -> bool {
        let (kind, flags) = (self.header[3], self.header[4]);
        match kind {
            DATA => self.length() == 0 && flags & END_STREAM == 0,
            CONTINUATION => self.length() == 0,
            HEADERS | RST_STREAM | WINDOW_UPDATE => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], &vec![0xff; usize::from(length)][..]].concat()
    }

    fn counted(frames: &[Vec<u8>], piece: usize) -> u32 {
        let now = Instant::now();
        let mut noise = Noise::new(now);
        for piece in [vec![b'x'; PREFACE], frames.concat()].concat().chunks(piece) {
            noise.heard(piece, now);
        }
        noise.frames
    }

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
            assert_eq!(counted(&[frame(kind, flags, length)], 1024), expected, "{kind} {flags} {length}");
        }
    }

    #[test]
    fn frames_are_followed_however_the_bytes_are_cut() {
        let frames = [frame(4, 0, 12), frame(HEADERS, 5, 100), frame(6, 0, 8), frame(DATA, 0, 255), frame(6, 1, 8)];

        for piece in [1, 2, 3, 7, 9, 24, 25, 1_000] {
            assert_eq!(counted(&frames, piece), 3, "{piece}");
        }
    }

    #[test]
    fn too_much_is_too_much_within_a_window() {
        let start = Instant::now();
        let mut noise = Noise::new(start);
        let ping = frame(6, 0, 8);
        assert!(!noise.heard(&[b'x'; PREFACE], start));

        let first = (0..MOST).any(|_| noise.heard(&ping, start));
        let later = noise.heard(&ping, start + WINDOW);
        let flood = (0..=MOST).any(|_| noise.heard(&ping, start + WINDOW));

        assert_eq!((first, later, flood), (false, false, true));
    }
}
