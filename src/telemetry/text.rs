//! Numbers, addresses, times and foreign text written as log lines need them, straight into the line's buffer.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Writes a whole number.
pub fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Writes seconds with exactly three decimals, cut and not rounded.
pub fn push_seconds(out: &mut Vec<u8>, duration: Duration) {
    push_number(out, duration.as_secs());
    let millis = duration.subsec_millis();
    out.extend_from_slice(&[b'.', digit(millis / 100), digit(millis / 10), digit(millis)]);
}

/// Writes hundredths with exactly two decimals.
pub fn push_hundredths(out: &mut Vec<u8>, value: u16) {
    push_number(out, u64::from(value / 100));
    let rest = u32::from(value % 100);
    out.extend_from_slice(&[b'.', digit(rest / 10), digit(rest)]);
}

fn digit(number: u32) -> u8 {
    b'0' + (number % 10) as u8
}

/// Writes an address; an IPv4 address inside of an IPv6 one is IPv4.
pub fn push_ip(out: &mut Vec<u8>, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let (text, length) = ipv4(address);
            out.extend_from_slice(&text[..length]);
        }
        // Writing to a vector cannot fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// The text of an address, and its length. Every line has two of them.
fn ipv4(address: Ipv4Addr) -> ([u8; 15], usize) {
    let (mut text, mut length) = ([b'.'; 15], 0);
    for octet in address.octets() {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let leading = usize::from(octet < 100) + usize::from(octet < 10);
        for digit in &digits[leading..] {
            text[length] = b'0' + digit;
            length += 1;
        }
        length += 1;
    }
    (text, length - 1)
}

/// Writes an address and a port.
pub fn push_socket_address(out: &mut Vec<u8>, address: SocketAddr) {
    let ip = address.ip().to_canonical();
    if ip.is_ipv6() {
        out.push(b'[');
    }
    push_ip(out, ip);
    out.extend_from_slice(if ip.is_ipv6() { b"]:" } else { b":" });
    push_number(out, u64::from(address.port()));
}

/// Writes foreign bytes as nginx does: quote, backslash and what is no printable ASCII as `\xHH`.
pub fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nearly all text is clean, and without an early exit the loop runs on vectors of bytes.
    if !bytes.iter().fold(false, |found, byte| found | must_escape(*byte)) {
        out.extend_from_slice(bytes);
        return;
    }
    for byte in bytes {
        if must_escape(*byte) {
            out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.push(*byte);
        }
    }
}

fn must_escape(byte: u8) -> bool {
    !(b' '..=b'~').contains(&byte) | (byte == b'"') | (byte == b'\\')
}

/// Writes foreign bytes as a JSON string; bytes that are no UTF-8 become U+FFFD.
pub fn push_json(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    if bytes.iter().fold(false, |found, byte| found | must_escape(*byte)) {
        for chunk in bytes.utf8_chunks() {
            push_json_text(out, chunk.valid());
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(b'"');
}

fn push_json_text(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 | 0x7f => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            _ => out.push(byte),
        }
    }
}

/// Writes text of people inside of quotes: other scripts stay readable, but nothing can end the quotes or the line.
pub fn push_readable(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '"' | '\\' => push_hex(out, character),
            _ => push_visible(out, character),
        }
    }
}

/// Whether a character may stand in a line as it is: control characters and those that break or turn lines may not.
pub fn is_visible(character: char) -> bool {
    !character.is_control() && !matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes a character that may stand in a line, and escapes the others.
pub fn push_visible(out: &mut String, character: char) {
    match character {
        visible if is_visible(visible) => out.push(visible),
        '\0'..' ' | '\u{7f}' => push_hex(out, character),
        // Writing to a string cannot fail.
        _ => drop(write!(out, "\\u{{{:X}}}", u32::from(character))),
    }
}

fn push_hex(out: &mut String, ascii: char) {
    // Writing to a string cannot fail.
    let _ = write!(out, "\\x{:02X}", u32::from(ascii));
}

/// `01/Jan/2024:12:00:00 +0000`.
pub fn nginx_time(time: Timestamp) -> String {
    time.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()
}

/// `2024-01-01T12:00:00Z`.
pub fn rfc3339_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2024-01-01 12:00:00`, in UTC.
pub fn control_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_have_the_decimals_of_the_contract() {
        for number in [0, 7, 10, 1234, u64::MAX] {
            assert_eq!(written(|out| push_number(out, number)), number.to_string());
        }
        for (millis, expected) in [(0, "0.000"), (5, "0.005"), (123, "0.123"), (61_050, "61.050")] {
            assert_eq!(written(|out| push_seconds(out, Duration::from_millis(millis))), expected);
        }
        assert_eq!(written(|out| push_seconds(out, Duration::from_micros(1_999))), "0.001");
        for (value, expected) in [(0, "0.00"), (5, "0.05"), (1834, "18.34"), (9999, "99.99")] {
            assert_eq!(written(|out| push_hundredths(out, value)), expected);
        }
    }

    #[test]
    fn addresses_are_written_in_their_canonical_form() {
        for (address, expected) in [
            ("192.168.1.10:443", "192.168.1.10:443"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(written(|out| push_socket_address(out, address)), expected);
        }
    }

    #[test]
    fn foreign_bytes_are_escaped_as_nginx_does() {
        for (bytes, expected) in [
            (&b"curl/8.5 ~"[..], "curl/8.5 ~"),
            (b"q\" status=200 \\", r"q\x22 status=200 \x5C"),
            ("caf\u{e9}\t.".as_bytes(), r"caf\xC3\xA9\x09."),
            (b"\0\x1f\x7f\xff\r\n", r"\x00\x1F\x7F\xFF\x0D\x0A"),
        ] {
            assert_eq!(written(|out| push_escaped(out, bytes)), expected);
        }
    }

    #[test]
    fn json_is_valid_for_every_byte() {
        let all: Vec<u8> = (0..=255).collect();

        let json = written(|out| push_json(out, &all));

        let text: String = serde_json::from_str(&json).unwrap();
        assert_eq!(text.chars().take(128).collect::<String>().as_bytes(), &all[..128]);
        assert!(text.chars().skip(128).all(|character| character == '\u{fffd}'));
        let json = written(|out| push_json(out, "gr\u{fc}n \u{4f60}".as_bytes()));
        assert_eq!(json, "\"gr\u{fc}n \u{4f60}\"");
    }

    #[test]
    fn readable_text_cannot_leave_its_quotes_or_its_line() {
        let mut out = String::new();
        push_readable(&mut out, "\u{4f60}\u{597d} \"x\" \\ a\nb\u{1b}[0m\u{85}\u{202e}");
        assert_eq!(out, "\u{4f60}\u{597d} \\x22x\\x22 \\x5C a\\x0Ab\\x1B[0m\\u{85}\\u{202E}");
    }

    #[test]
    fn times_are_utc() {
        let time = Timestamp::from_second(1_704_110_400).unwrap();
        assert_eq!(nginx_time(time), "01/Jan/2024:12:00:00 +0000");
        assert_eq!(rfc3339_time(time), "2024-01-01T12:00:00Z");
        assert_eq!(control_time(time), "2024-01-01 12:00:00");
    }
}
