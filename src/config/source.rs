//! Reads the text of a configuration file. Whatever goes wrong is one clear message that names the file and the fix.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::problem::{ConfigError, Problem};

/// The largest file that is read.
pub const MAX_BYTES: u64 = 8 << 20;

/// A file's name and content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The file as it was named.
    pub name: String,
    /// The content as read.
    pub content: String,
}

impl Text {
    /// A text that was not read from a file, or not by [`read`].
    pub fn new(name: impl Into<String>, content: impl Into<String>) -> Self {
        Self { name: name.into(), content: content.into() }
    }

    /// SHA-256 of the content in lower-case hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut out = String::with_capacity(64);
        for byte in Sha256::digest(self.content.as_bytes()) {
            // Writing to a String never fails.
            let _ = write!(out, "{byte:02x}");
        }
        out
    }

    /// The content without a byte-order mark.
    pub fn body(&self) -> &str {
        self.content.strip_prefix('\u{feff}').unwrap_or(&self.content)
    }

    pub(super) fn lines(&self) -> std::str::Lines<'_> {
        self.body().lines()
    }
}

/// Reads a file of at most [`MAX_BYTES`] of UTF-8.
pub fn read(path: &Path) -> Result<Text, ConfigError> {
    let name = path.display().to_string();
    let fail = |message: String, help: &str| {
        let problem = Problem::file(&name, message, (!help.is_empty()).then(|| help.to_owned()));
        ConfigError { problems: vec![problem], text: Text::new(&name, "") }
    };
    let bytes = read_bounded(path).map_err(|error| match error {
        Unread::TooLarge => fail(
            "the file is larger than 8 MiB".to_owned(),
            "write services that differ only in a number as one entry with expand",
        ),
        Unread::Io(error) => match error.kind() {
            ErrorKind::NotFound => fail("no such file".to_owned(), "check the path, and that its volume is mounted"),
            ErrorKind::PermissionDenied => {
                fail("no permission to read it".to_owned(), "make it readable for the user that runs the proxy")
            }
            ErrorKind::IsADirectory => fail("this is a directory".to_owned(), "name the file inside it"),
            _ => fail(error.to_string(), ""),
        },
    })?;
    match String::from_utf8(bytes) {
        Ok(content) => Ok(Text { name, content }),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(fail(format!("line {line} is not UTF-8"), "save the file as UTF-8"))
        }
    }
}

enum Unread {
    TooLarge,
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, Unread> {
    let metadata = path.metadata()?;
    if metadata.is_dir() {
        return Err(Unread::Io(ErrorKind::IsADirectory.into()));
    }
    // A pipe would be waited for, a device never ends.
    if !metadata.is_file() {
        return Err(Unread::Io(io::Error::other("not a regular file")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(Unread::TooLarge);
    }
    // A file may grow meanwhile: the read is bounded too.
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Unread::TooLarge);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_bytes_as_read() {
        let text = Text::new("a", "\u{feff}abc");

        assert_eq!(text.hash(), "1c28dc3f1f804a1ad9c9b4b4cf5e2658d16ad4ed08e3020d04a8d2865018947c");
    }
}
