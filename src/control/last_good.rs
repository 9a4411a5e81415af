//! `state_dir/last-good.yaml`: the newest accepted file, which serves when a process starts with a broken one. Its first
//! line tells where it came from and what it hashes to, so that half a copy is never taken for a whole one.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::state_file::{replace, unwritable};
use crate::config::source::{self, Text};

/// Where processes keep what they need to survive, unless the file says otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/migration-proxy";

/// The beginning of the first line.
const MARK: &str = "# migration-proxy accepted this text as sha256 ";

/// Before the name of the file in the first line.
const FROM: &str = " from ";

/// Files that tell where the state of a configuration file is; more are forgotten, the oldest first.
const MOST_POINTERS: usize = 64;

/// The copy in one directory.
#[derive(Clone, Debug)]
pub struct LastGood {
    path: PathBuf,
    /// The configuration file whose copy it is, where that is known.
    of: Option<PathBuf>,
    /// The newest text that is to be kept.
    offered: Arc<Mutex<Option<Text>>>,
    /// One writer at a time.
    writing: Arc<Mutex<()>>,
}

impl LastGood {
    /// The copy below this directory, which need not exist yet.
    pub fn in_directory(directory: &Path) -> Self {
        Self::at(directory.join("last-good.yaml"))
    }

    /// The copy of this configuration file, whatever the text that is kept was called.
    #[must_use]
    pub fn of(self, file: &Path) -> Self {
        Self { of: Some(absolute(file)), ..self }
    }

    /// A copy in this file.
    pub fn at(path: PathBuf) -> Self {
        Self { path, of: None, offered: Arc::default(), writing: Arc::default() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The copy, as the text that was accepted; `None` when there is none.
    ///
    /// # Errors
    ///
    /// It cannot be read or is damaged.
    pub fn read(&self) -> Result<Option<Text>, String> {
        Ok(self.read_with_source()?.map(|(text, _)| text))
    }

    /// The configuration file that the copy was made of, when it is another one than this.
    pub fn stranger(&self) -> Option<PathBuf> {
        let (_, source) = self.read_with_source().ok()??;
        let source = PathBuf::from(source?);
        let own = self.of.as_deref()?;
        // A relative path says nothing any more, and what lies beside the copy is an earlier copy.
        let is_known = source.is_absolute() && self.path.parent().is_none_or(|beside| !source.starts_with(beside));
        (is_known && source != own).then_some(source)
    }

    fn read_with_source(&self) -> Result<Option<(Text, Option<String>)>, String> {
        let path = self.path.display();
        match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let text = source::read(&self.path).map_err(|error| error.summary())?;
        let Some(rest) = text.content.strip_prefix(MARK) else { return Err(format!("{path} has lost its first line")) };
        let (head, content) = rest.split_once('\n').unwrap_or((rest, ""));
        let text = Text::new(text.name, content);
        match head.split(' ').next() {
            Some(hash) if hash == text.hash() => {
                let source = head.split_once(FROM).map(|(_, source)| source.to_owned());
                Ok(Some((text, source)))
            }
            _ => Err(format!("{path} is damaged: its text is another one than its first line says")),
        }
    }

    /// Names the text that [`LastGood::keep_offered`] keeps.
    pub fn offer(&self, text: Text) {
        *self.offered.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// Keeps the newest text that was offered, if nobody has; may wait for the disk.
    pub fn keep_offered(&self) -> Option<Result<(), String>> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.offered.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(self.keep(&text))
    }

    /// Keeps a text that was accepted. One that is kept already is not written again.
    ///
    /// # Errors
    ///
    /// One line with the place; what was kept before is still there.
    pub fn keep(&self, text: &Text) -> Result<(), String> {
        let hash = text.hash();
        let source = self.of.as_ref().map_or_else(|| text.name.clone(), |file| file.display().to_string());
        let source = source.escape_debug().to_string();
        let is_kept = |(kept, from): (Text, Option<String>)| {
            kept.hash() == hash && (self.of.is_none() || from.as_ref() == Some(&source))
        };
        if self.read_with_source().is_ok_and(|kept| kept.is_some_and(is_kept)) {
            return Ok(());
        }
        let head = format!("{MARK}{hash} on {}{FROM}{source}\n", Timestamp::now().strftime("%F %T UTC"));
        replace(&self.path, format!("{head}{}", text.content).as_bytes())
            .map_err(|error| unwritable(&self.path, &error))
    }
}

/// The state directory of a configuration file that cannot be decoded: as its text says, else as it said when it was
/// last good, else the default.
pub fn locate(file: &Path, broken: &Text) -> PathBuf {
    locate_below(Path::new(DEFAULT_DIRECTORY), file, broken)
}

/// Remembers the state directory of a configuration file, should the file be broken one day. Needs to be known only
/// where it is not the default, and helps only where the default directory can be written to.
pub fn remember(file: &Path, directory: &Path) {
    remember_below(Path::new(DEFAULT_DIRECTORY), file, directory);
}

fn locate_below(default: &Path, file: &Path, broken: &Text) -> PathBuf {
    let remembered = || remembered(&pointer(default, file)).map(PathBuf::from);
    named_in(&broken.content)
        .or_else(remembered)
        .filter(|found| found.is_absolute())
        .unwrap_or_else(|| default.to_owned())
}

fn remember_below(default: &Path, file: &Path, directory: &Path) {
    let pointer = pointer(default, file);
    let Some(directory) = directory.to_str().filter(|directory| Path::new(directory) != default) else {
        let _ = fs::remove_file(pointer);
        return;
    };
    if remembered(&pointer).is_some_and(|known| known == directory) {
        return;
    }
    // Without it a broken file only has to name its state_dir, so a failure is no trouble.
    if replace(&pointer, directory.as_bytes()).is_ok() {
        forget_old(pointer.parent().unwrap_or(default));
    }
}

fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}

/// What a pointer says; a special file in its place would keep a start waiting.
fn remembered(pointer: &Path) -> Option<String> {
    source::read(pointer).ok().map(|text| text.content)
}

fn pointer(default: &Path, file: &Path) -> PathBuf {
    let file = absolute(file);
    let hash = Sha256::digest(file.as_os_str().as_encoded_bytes());
    let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    default.join("state-dirs").join(name)
}

fn forget_old(pointers: &Path) {
    let Ok(entries) = fs::read_dir(pointers) else { return };
    let known: BTreeSet<_> =
        entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    for (_, path) in known.iter().take(known.len().saturating_sub(MOST_POINTERS)) {
        let _ = fs::remove_file(path);
    }
}

/// The value of a `state_dir` key in a text that may be no YAML at all.
fn named_in(text: &str) -> Option<PathBuf> {
    let line = text.lines().find_map(|line| {
        let at = line.find("state_dir:").filter(|at| !line[..*at].contains('#'))?;
        Some(line[at + "state_dir:".len()..].trim_start())
    })?;
    let value = match line.chars().next()? {
        quote @ ('"' | '\'') => line[1..].split(quote).next()?,
        _ => line.split([',', '}', ' ', '\t']).next()?,
    };
    (!value.is_empty()).then(|| PathBuf::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_as_it_was_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let last_good = LastGood::in_directory(&directory.path().join("not/yet/there"));
        assert_eq!(last_good.read(), Ok(None));

        for content in ["services: []\n", "", "\u{feff}a: b\r\nc: 1"] {
            last_good.keep(&Text::new("/etc/x.yaml", content)).unwrap();
            assert_eq!(last_good.read().unwrap().unwrap().content, content);
        }
    }

    #[test]
    fn a_copy_knows_whose_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let copy = |file: &str| LastGood::in_directory(directory.path()).of(Path::new(file));
        assert_eq!(copy("/etc/a.yaml").stranger(), None, "there is none");

        copy("/etc/a.yaml").keep(&Text::new("the history's own name", "services: []\n")).unwrap();
        assert_eq!(copy("/etc/a.yaml").stranger(), None);
        assert_eq!(copy("/etc/b.yaml").stranger(), Some(PathBuf::from("/etc/a.yaml")));

        copy("/etc/b.yaml").keep(&Text::new("/etc/b.yaml", "services: []\n")).unwrap();
        assert_eq!(copy("/etc/b.yaml").stranger(), None, "the same text of another file is that file's from now on");

        // Copies of earlier versions: by a relative path, or made of the history.
        let stored = directory.path().join("history/x.yaml").display().to_string();
        for name in ["b.yaml", stored.as_str()] {
            LastGood::in_directory(directory.path()).keep(&Text::new(name, format!("# {name}\n"))).unwrap();
            assert_eq!(copy("/etc/a.yaml").stranger(), None, "{name}");
        }
    }

    #[test]
    fn what_is_damaged_is_not_taken_for_whole() {
        let directory = tempfile::tempdir().unwrap();
        let last_good = LastGood::in_directory(directory.path());
        last_good.keep(&Text::new("x", "services: [a, b]\n")).unwrap();
        let path = directory.path().join("last-good.yaml");
        let whole = fs::read_to_string(&path).unwrap();

        for damaged in ["", "services: [a, b]\n", &whole[..whole.len() - 3], &whole.replace("a, b", "a, c")] {
            fs::write(&path, damaged).unwrap();
            assert!(last_good.read().is_err(), "{damaged:?}");
        }
        last_good.keep(&Text::new("x", "services: [a, b]\n")).unwrap();
        assert!(last_good.read().unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_written_leaves_the_earlier_copy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();

        let error = LastGood::in_directory(&file).keep(&Text::new("x", "a: b")).unwrap_err();

        assert!(error.starts_with("cannot write ") && error.contains("last-good.yaml"), "{error}");
    }

    #[test]
    fn a_broken_text_still_tells_where_its_state_is() {
        for (text, expected) in [
            ("reload: {state_dir: /a/b, poll: 1s}\nservices: [", Some("/a/b")),
            ("reload:\n  state_dir: \"/a b\"\n", Some("/a b")),
            ("  state_dir: '/a'}\n", Some("/a")),
            ("# state_dir: /a\nstate_dir:\n", None),
            ("services: [", None),
        ] {
            assert_eq!(named_in(text).as_deref(), expected.map(Path::new), "{text}");
        }
    }

    #[test]
    fn a_text_that_tells_nothing_is_found_by_its_file() {
        let default = tempfile::tempdir().unwrap();
        let (default, broken) = (default.path(), Text::new("x", "services: ["));
        let (file, other) = (Path::new("/etc/a.yaml"), Path::new("/etc/b.yaml"));
        assert_eq!(locate_below(default, file, &broken), default);

        remember_below(default, file, Path::new("/srv/state"));
        assert_eq!(locate_below(default, file, &broken), Path::new("/srv/state"));
        assert_eq!(locate_below(default, other, &broken), default);

        remember_below(default, file, default);
        assert_eq!(locate_below(default, file, &broken), default);
    }

    #[test]
    fn pointers_are_bounded() {
        let default = tempfile::tempdir().unwrap();
        for number in 0..MOST_POINTERS + 9 {
            remember_below(default.path(), Path::new(&format!("/etc/{number}.yaml")), Path::new("/srv"));
        }
        assert_eq!(fs::read_dir(default.path().join("state-dirs")).unwrap().count(), MOST_POINTERS);
    }
}
