//! The tokens that may write: lines `NAME:TOKEN`, or a bare token of `admin`. Read at each write, so that a rotated
//! Secret counts at once.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use subtle::ConstantTimeEq as _;

/// Larger files are no token files.
const MAX_BYTES: u64 = 64 << 10;

/// A shorter token is guessed too easily.
const SHORTEST: usize = 8;

/// Names that audit lines use for others.
const RESERVED: [&str; 3] = ["loopback", "file", "process"];

/// The owner of a token without a name.
const UNNAMED: &str = "admin";

/// The tokens of one file.
pub struct Tokens(Vec<(Box<str>, Box<[u8]>)>);

impl Tokens {
    /// Reads a token file. Blank lines and lines that begin with `#` are left out.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without showing any of it.
    pub fn read(path: &Path) -> Result<Self, String> {
        // Opening a pipe would wait for its writer.
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err("the token file is no regular file".to_owned());
        }
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        let read = read.map_err(|error| format!("the token file cannot be read: {error}"))?;
        if read as u64 > MAX_BYTES {
            return Err("the token file is larger than 64 KiB".to_owned());
        }
        let lines = text
            .trim_start_matches('\u{feff}')
            .lines()
            .map(str::trim)
            .enumerate()
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let tokens = lines.map(|(index, line)| token(line).map_err(|why| format!("line {}: {why}", index + 1)));
        let tokens: Vec<_> = tokens.collect::<Result<_, _>>()?;
        if tokens.is_empty() { Err("the token file holds no token".to_owned()) } else { Ok(Self(tokens)) }
    }

    /// Whose token this is. Takes the same time for every token of its length.
    pub fn owner(&self, presented: &[u8]) -> Option<&str> {
        let mut owner = None;
        for (name, token) in &self.0 {
            if bool::from(token.ct_eq(presented)) {
                owner = Some(&**name);
            }
        }
        owner
    }
}

fn token(line: &str) -> Result<(Box<str>, Box<[u8]>), String> {
    let (name, token) = line.split_once(':').map_or((UNNAMED, line), |(name, token)| (name.trim(), token.trim()));
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte)) {
        return Err("a name has letters, digits, and -_.@ only".to_owned());
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name} is a word of the audit, not a name: choose another one"));
    }
    if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("a token has at least {SHORTEST} characters, all of them visible ASCII"));
    }
    Ok((name.into(), token.as_bytes().into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Tokens, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Tokens::read(file.path())
    }

    #[test]
    fn a_token_names_its_owner() {
        let tokens = read("# ops\nops-team:s3cret-token-1\n\nbare-token-2\n").unwrap_or_else(|error| panic!("{error}"));

        for (presented, owner) in [
            ("s3cret-token-1", Some("ops-team")),
            ("bare-token-2", Some("admin")),
            ("s3cret-token-", None),
            ("s3cret-token-12", None),
            ("ops-team:s3cret-token-1", None),
            ("", None),
        ] {
            assert_eq!(tokens.owner(presented.as_bytes()), owner, "{presented}");
        }
    }

    #[test]
    fn what_is_no_token_file_is_refused_without_showing_it() {
        for text in [
            "",
            "# only a comment\n",
            "short",
            "loopback:s3cret-token",
            "a b:s3cret-token",
            ":s3cret-token",
            "x:s3cret t",
        ] {
            let error = read(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(Tokens::read(Path::new("/nonexistent/tokens")).is_err());
    }
}
