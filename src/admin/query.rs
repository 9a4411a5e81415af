//! Queries as HTML forms write them: `name=value`, `&`, `%XX`, and a plus for a blank.

/// The pairs of a query; `None` where bytes are no UTF-8.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = Option<(String, String)>> + '_ {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decoded(name)?, decoded(value)?))
    })
}

/// A percent sign without two hexadecimal digits stands for itself.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let (byte, behind) = match (first, behind) {
            (b'+', _) => (b' ', behind),
            (b'%', [high, low, behind @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, behind),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            (byte, _) => (*byte, behind),
        };
        bytes.push(byte);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_taken_apart_and_decoded() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        for (query, expected) in [
            ("", vec![]),
            ("host=a.example", vec![pair("host", "a.example")]),
            ("a=1&&b&c=", vec![pair("a", "1"), pair("b", ""), pair("c", "")]),
            ("header=X-U%3a%20a%2Bb+c%26d", vec![pair("header", "X-U: a+b c&d")]),
            ("a=b=c", vec![pair("a", "b=c")]),
            ("a=100%&b=%zz&c=%4", vec![pair("a", "100%"), pair("b", "%zz"), pair("c", "%4")]),
            ("n=gr%C3%BCn&bad=%ff", vec![pair("n", "gr\u{fc}n"), None]),
        ] {
            assert_eq!(pairs(query).collect::<Vec<_>>(), expected, "{query}");
        }
    }
}
