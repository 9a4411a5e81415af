//! HTTP/2 streams that the HTTP library refuses by itself, because they are malformed or their head is far too large: no
//! request of them reaches us, but the frames do that it writes. They are counted by these, and so are the answers that it
//! has taken and not written to their end.

use super::frames::{DATA, Frame, Frames, HEADERS, RST_STREAM};
use crate::telemetry::labels::RejectCause;

/// What a stream is reset for that breaks the protocol (RFC 9113, 7). STREAM_CLOSED is not among them: what was under way
/// when a stream ended is no fault.
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
const FLOW_CONTROL_ERROR: [u8; 4] = [0, 0, 0, 3];
const FRAME_SIZE_ERROR: [u8; 4] = [0, 0, 0, 6];

/// More streams than that are not kept in mind; the oldest are forgotten first.
const MOST_OPEN: usize = 256;

/// Streams kept in mind that their client left.
const MOST_LEFT: usize = 8;

/// Follows what we write on one connection.
#[derive(Debug, Default)]
pub struct Resets {
    frames: Frames,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    /// Streams whose answer has begun and not ended, so that trailers are known from heads.
    open: Vec<u32>,
    /// The stream of the last head that was too large: it may be reset too.
    too_large: u32,
    /// Streams that their client left last: frames of them that waited for room in the socket may still come.
    left: [u32; MOST_LEFT],
    /// How many these have been.
    leaves: usize,
    /// HEADERS and DATA.
    answered: u32,
}

impl Resets {
    /// These bytes were written next; `refused` is told why a stream was.
    pub fn wrote(&mut self, bytes: &[u8], mut refused: impl FnMut(RejectCause)) {
        let seen = &mut self.seen;
        self.frames.follow(bytes, |frame| {
            if let Some(cause) = seen.see(frame) {
                refused(cause);
            }
        });
    }

    /// The client has reset this stream: nothing more of it is written.
    pub fn left(&mut self, stream: u32) {
        self.seen.leave(stream);
    }

    /// Whether an answer has begun and not ended.
    pub fn owes(&self) -> bool {
        !self.seen.open.is_empty()
    }

    /// Frames of answers so far; begins anew when there are too many.
    pub fn answered(&self) -> u32 {
        self.seen.answered
    }
}

impl Seen {
    fn see(&mut self, frame: &Frame) -> Option<RejectCause> {
        let stream = frame.stream();
        self.answered = self.answered.wrapping_add(u32::from(matches!(frame.kind(), HEADERS | DATA)));
        match frame.kind() {
            HEADERS if !frame.ends_stream() => self.begin(stream),
            // A head that is too large is answered with 431 and not a field more; our own answers have a date.
            HEADERS if !self.end(stream) && is_only_status(frame) && !self.left.contains(&stream) => {
                self.too_large = stream;
                return Some(RejectCause::Header);
            }
            DATA if frame.ends_stream() => _ = self.end(stream),
            RST_STREAM => {
                self.end(stream);
                return (is_fault(frame) && stream != self.too_large).then_some(RejectCause::Malformed);
            }
            _ => {}
        }
        None
    }

    fn begin(&mut self, stream: u32) {
        if self.open.contains(&stream) || self.left.contains(&stream) {
            return;
        }
        if self.open.len() == MOST_OPEN {
            self.open.remove(0);
        }
        self.open.push(stream);
    }

    fn leave(&mut self, stream: u32) {
        self.end(stream);
        self.left[self.leaves % MOST_LEFT] = stream;
        self.leaves += 1;
    }

    /// Whether its answer had begun.
    fn end(&mut self, stream: u32) -> bool {
        let place = self.open.iter().rposition(|open| *open == stream);
        place.map(|place| self.open.remove(place)).is_some()
    }
}

/// Whether the fields are one `:status`, from the table or of three digits (RFC 7541, 6), behind changes of the table's size.
fn is_only_status(head: &Frame) -> bool {
    let mut block = head.payload();
    if block.len() < head.length() {
        return false;
    }
    while let [0x20..=0x3f, rest @ ..] = block {
        let of_size = if block[0] == 0x3f { rest.iter().take_while(|byte| **byte >= 0x80).count() + 1 } else { 0 };
        block = rest.get(of_size..).unwrap_or_default();
    }
    matches!(block, [0x80..=0xff] | [0x08 | 0x48, 0x83, _, _, _])
}

fn is_fault(reset: &Frame) -> bool {
    [PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR].iter().any(|code| reset.payload() == code)
}

#[cfg(test)]
mod tests {
    use super::super::frames::END_STREAM;
    use super::super::frames::tests::frame;
    use super::*;

    #[test]
    fn only_what_the_library_refuses_counts() {
        const MALFORMED: RejectCause = RejectCause::Malformed;
        const HEADER: RejectCause = RejectCause::Header;
        let reset = |stream, code: u8| frame(RST_STREAM, 0, stream, &[0, 0, 0, code]);
        let head = |stream, flags, block: &[u8]| frame(HEADERS, 4 | flags, stream, block);
        let last = |stream, block: &[u8]| head(stream, END_STREAM, block);
        let too_large: &[u8] = &[0x48, 0x83, 0x68, 0xc8, 0x7f];
        for (name, sent, expected) in [
            ("a fault", vec![reset(1, 1)], vec![MALFORMED]),
            ("two", vec![reset(1, 3), reset(3, 6)], vec![MALFORMED; 2]),
            ("cancelled, refused, ended early", vec![reset(1, 8), reset(3, 7), reset(5, 0), reset(7, 5)], vec![]),
            ("an answer, and its body", vec![head(1, 0, &[0x88]), frame(DATA, END_STREAM, 1, &[1; 9])], vec![]),
            ("a head too large", vec![last(1, too_large)], vec![HEADER]),
            ("without a table", vec![last(1, &[0x20, 0x08, 0x83, 0x68, 0xc8, 0x7f])], vec![HEADER]),
            ("with another", vec![last(1, &[0x20, 0x3f, 0xe1, 0x1f, 0x48, 0x83, 0x68, 0xc8, 0x7f])], vec![HEADER]),
            ("one more, and a reset each", vec![last(1, too_large), last(3, &[0xbe]), reset(3, 1)], vec![HEADER; 2]),
            ("an answer without a body", vec![last(1, &[0x89, 0xbe])], vec![]),
            ("with five fields", vec![last(1, &[0x8b, 0xbe, 0xbf, 0xc0, 0xc1])], vec![]),
            ("trailers", vec![head(1, 0, &[0x88]), last(1, &[0xbe])], vec![]),
            ("trailers of another", vec![head(1, 0, &[0x88]), head(3, 0, &[0x88]), last(1, &[0xbe])], vec![]),
            ("the end of another", vec![head(1, 0, &[0x88]), last(3, &[0xbe])], vec![HEADER]),
            ("broken while it was answered", vec![head(1, 0, &[0x88]), reset(1, 1)], vec![MALFORMED]),
        ] {
            let (mut resets, mut seen) = (Resets::default(), Vec::new());
            resets.wrote(&sent.concat(), |cause| seen.push(cause));
            assert_eq!(seen, expected, "{name}");
        }
    }

    #[test]
    fn an_answer_is_owed_until_its_last_frame_or_its_client_s_or_our_reset() {
        let head = |stream| frame(HEADERS, 4, stream, &[0x88]);
        let data = |stream, flags| frame(DATA, flags, stream, &[1; 9]);
        for (name, sent, left, after, (owes, answered)) in [
            ("no body", frame(HEADERS, 4 | END_STREAM, 1, &[0x88, 0xbe]), 0, vec![], (false, 1)),
            ("a head", head(1), 0, vec![], (true, 1)),
            ("some of it", [head(1), data(1, 0)].concat(), 0, vec![], (true, 2)),
            ("all of it", [head(1), data(1, 0), data(1, END_STREAM)].concat(), 0, vec![], (false, 3)),
            ("trailers", [head(1), frame(HEADERS, 4 | END_STREAM, 1, &[0xbe])].concat(), 0, vec![], (false, 2)),
            ("after a hint", [head(1), head(1), data(1, END_STREAM)].concat(), 0, vec![], (false, 3)),
            ("no answer", [frame(6, 1, 0, &[0; 8]), frame(4, 1, 0, &[])].concat(), 0, vec![], (false, 0)),
            ("we reset it", [head(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])].concat(), 0, vec![], (false, 1)),
            ("its client leaves it", head(1), 1, vec![], (false, 1)),
            ("the client leaves another", head(1), 3, vec![], (true, 1)),
            ("its client left before it began", vec![], 1, head(1), (false, 1)),
            ("its client left before it ended", head(1), 1, frame(HEADERS, 4 | END_STREAM, 1, &[0xbe]), (false, 2)),
        ] {
            let mut resets = Resets::default();
            let mut refused = |cause| panic!("{name}: {cause:?}");
            resets.wrote(&sent, &mut refused);
            resets.left(left);
            resets.wrote(&after, &mut refused);
            assert_eq!((resets.owes(), resets.answered()), (owes, answered), "{name}");
        }
    }

    #[test]
    fn streams_that_never_end_are_forgotten() {
        let mut resets = Resets::default();
        for stream in 0..2 * MOST_OPEN {
            let head = frame(HEADERS, 4, u32::try_from(stream).unwrap(), &[0x88]);
            resets.wrote(&head, |_| panic!("nothing was refused"));
        }

        assert_eq!(resets.seen.open.len(), MOST_OPEN);
    }
}
