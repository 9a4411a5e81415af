//! HTTP/2 frame by frame: whatever a test wants to say, and what the peer makes of it.

use std::io;
use std::time::Duration;

use super::super::PATIENCE;
use super::{Client, Failure};

/// DATA.
pub const DATA: u8 = 0;
/// HEADERS.
pub const HEADERS: u8 = 1;
/// RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// SETTINGS.
pub const SETTINGS: u8 = 4;
/// PING.
pub const PING: u8 = 6;
/// GOAWAY.
pub const GOAWAY: u8 = 7;
/// WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// ACK of SETTINGS and PING.
pub const ACK: u8 = 1;
/// END_STREAM.
pub const END_STREAM: u8 = 1;
/// END_HEADERS.
pub const END_HEADERS: u8 = 4;

/// One frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The status that a HEADERS frame begins with.
    pub fn status(&self) -> u16 {
        status(&self.payload)
    }
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status.
    Status(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// The connection ends, with this code.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

/// A connection whose frames are the test's own.
pub struct Frames {
    wire: Client,
}

impl Frames {
    /// Speaks the preface over `wire`. Responses are asked to use no table, so that they can be read without one.
    #[track_caller]
    pub fn open(mut wire: Client) -> Self {
        wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut this = Self { wire };
        this.send(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
        this.next_of(SETTINGS);
        this.send(SETTINGS, ACK, 0, b"");
        this
    }

    /// The bytes of a frame.
    pub fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.send(Self::bytes(kind, flags, stream, payload));
    }

    /// Sends any bytes; an error when the peer has left.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.try_send(bytes)
    }

    /// The next frame.
    pub fn next(&mut self) -> Result<Frame, Failure> {
        let head = self.wire.bytes(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload: self.wire.bytes(length)? })
    }

    /// Whether the peer says nothing for so long, and does not leave.
    pub fn is_quiet_for(&mut self, time: Duration) -> bool {
        self.wire.patience(time);
        let next = self.next();
        self.wire.patience(PATIENCE);
        matches!(next, Err(Failure::Timeout))
    }

    /// The next frame of this type; others on the way are passed over.
    #[track_caller]
    pub fn next_of(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|failure| panic!("no frame of type {kind}: {failure}"));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// What becomes of a stream.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        loop {
            let Ok(frame) = self.next() else { return Outcome::Closed };
            let code = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
            match frame.kind {
                HEADERS if frame.stream == stream => return Outcome::Status(frame.status()),
                RST_STREAM if frame.stream == stream => return Outcome::Reset(code(0)),
                // One without an error announces the end of an orderly connection.
                GOAWAY if code(4) != 0 => return Outcome::GoAway(code(4)),
                _ => {}
            }
        }
    }
}

/// A header block of literal fields that enter no table (RFC 7541, 6.2.2).
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    block
}

fn length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(length as u8);
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// `:status`, which begins every response: an entry of the static table, or three digits.
fn status(block: &[u8]) -> u16 {
    let size_updates = block.iter().take_while(|byte| **byte & 0b1110_0000 == 0b0010_0000).count();
    match block[size_updates..] {
        [first @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
        [0x08 | 0x18 | 0x48, 3, a, b, c, ..] => {
            [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
        }
        [0x08 | 0x18 | 0x48, coded, ref text @ ..] if coded & 0x80 != 0 => {
            huffman_digits(&text[..usize::from(coded & 0x7f)])
        }
        ref other => panic!("no status in {other:x?}"),
    }
}

/// Digits in the code of RFC 7541, appendix B: 0 to 2 have five bits, 3 to 9 six.
fn huffman_digits(bytes: &[u8]) -> u16 {
    let all = bytes.iter().fold(0_u32, |all, byte| all << 8 | u32::from(*byte));
    let (mut left, mut number) = (bytes.len() * 8, 0);
    for _ in 0..3 {
        let five = all >> (left - 5) & 0b1_1111;
        let digit = if five < 3 {
            left -= 5;
            five
        } else {
            left -= 6;
            (all >> left & 0b11_1111) - 0b01_1001 + 3
        };
        number = number * 10 + u16::try_from(digit).unwrap();
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_however_they_are_written() {
        for (bytes, expected) in [
            (&[0x88][..], 200),
            (&[0x20, 0x8d], 404),
            (&[0x48, 3, b'4', b'2', b'1'], 421),
            // "302" and "307" of RFC 7541, appendix C.
            (&[0x48, 0x82, 0x64, 0x02], 302),
            (&[0x48, 0x83, 0x64, 0x0e, 0xff], 307),
        ] {
            assert_eq!(status(bytes), expected);
        }
    }
}
