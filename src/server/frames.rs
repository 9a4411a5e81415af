//! Finds the headers of HTTP/2 frames in the bytes of a connection (RFC 9113, 4.1), however these are cut.

/// The types of frames that somebody here asks for (RFC 9113, 6).
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// The flag of the last frame of its stream.
pub const END_STREAM: u8 = 1;

/// The header of a frame.
const HEADER: usize = 9;

/// As much of a payload is looked at.
const SHOWN: usize = 16;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    /// Bytes until the next header begins.
    skip: usize,
    frame: Frame,
    /// How much of the frame's bytes is there.
    filled: usize,
}

/// The header of one frame, and how the payload begins of a head or a reset.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame([u8; HEADER + SHOWN]);

impl Frames {
    /// The first frame begins after `skip` bytes.
    pub fn after(skip: usize) -> Self {
        Self { skip, frame: Frame::default(), filled: 0 }
    }

    /// These bytes come next; `see` is given each frame whose header they complete.
    pub fn follow(&mut self, mut bytes: &[u8], mut see: impl FnMut(&Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if !self.take(&mut bytes, HEADER) || !self.take(&mut bytes, HEADER + self.frame.shown()) {
                return;
            }
            self.skip = HEADER + self.frame.length() - self.filled;
            self.filled = 0;
            see(&self.frame);
        }
    }

    /// Whether the first `wanted` bytes of the frame are there, taken from `bytes` where they were not.
    fn take(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let taken = wanted.saturating_sub(self.filled).min(bytes.len());
        let (first, rest) = bytes.split_at(taken);
        self.frame.0[self.filled..self.filled + taken].copy_from_slice(first);
        self.filled += taken;
        *bytes = rest;
        self.filled >= wanted
    }
}

impl Frame {
    /// The bytes of the payload that are looked at.
    fn shown(&self) -> usize {
        if matches!(self.kind(), HEADERS | RST_STREAM) { self.length().min(SHOWN) } else { 0 }
    }

    /// The type.
    pub fn kind(&self) -> u8 {
        self.0[3]
    }

    /// The bytes of the payload.
    pub fn length(&self) -> usize {
        let [high, middle, low, ..] = self.0;
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    }

    /// Nothing follows on this stream.
    pub fn ends_stream(&self) -> bool {
        self.0[4] & END_STREAM != 0
    }

    /// The stream; 0 is the connection.
    pub fn stream(&self) -> u32 {
        let [_, _, _, _, _, a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a & 0x7f, b, c, d])
    }

    /// How the payload begins.
    pub fn payload(&self) -> &[u8] {
        &self.0[HEADER..HEADER + self.shown()]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The bytes of a frame.
    pub(in crate::server) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn frames_are_followed_however_the_bytes_are_cut() {
        let sent = [
            frame(4, 0, 0, &[0xff; 12]),
            frame(HEADERS, 5, 1, &[0x88; 100]),
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
            frame(DATA, END_STREAM, 0x8000_0003, &[0xff; 300]),
            frame(HEADERS, 0, 7, &[]),
            frame(HEADERS, 0, 9, &[0x48, 0x83]),
            frame(RST_STREAM, 0, 7, &[0, 0, 0, 1]),
        ];
        let expected = [
            ((4, 0, 12, false), vec![]),
            ((HEADERS, 1, 100, true), vec![0x88; SHOWN]),
            ((RST_STREAM, 1, 4, false), vec![0, 0, 0, 8]),
            ((DATA, 3, 300, true), vec![]),
            ((HEADERS, 7, 0, false), vec![]),
            ((HEADERS, 9, 2, false), vec![0x48, 0x83]),
            ((RST_STREAM, 7, 4, false), vec![0, 0, 0, 1]),
        ];
        let bytes = [&b"before"[..], &sent.concat()].concat();

        for piece in [1, 2, 3, 7, 9, 13, 24, 25, 1_000] {
            let (mut frames, mut seen) = (Frames::after(6), Vec::new());
            for piece in bytes.chunks(piece) {
                frames.follow(piece, |frame| {
                    let stream = (frame.kind(), frame.stream(), frame.length(), frame.ends_stream());
                    seen.push((stream, frame.payload().to_vec()));
                });
            }
            assert_eq!(seen, expected, "pieces of {piece}");
        }
    }
}
