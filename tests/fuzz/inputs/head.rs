//! Heads out of bytes: a first line of words, then a line for each field. What is no field is left out.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The first line and the fields.
pub fn of(bytes: &[u8]) -> (Vec<&str>, HeaderMap) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let words = lines.next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    // As many as a head may have by default.
    for line in lines.take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (words.split(' ').collect(), headers)
}
