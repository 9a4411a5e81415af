//! `state_dir/history/`: the last accepted files by their hash, and what changed when, by whom and why, so that
//! `history` answers what happened last night and `rollback --config` goes back to it. Everything is bounded, replaced as
//! a whole, and checked when it is read; nothing waits for the disk but the writer.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::last_good::LastGood;
use super::state::Mark;
use super::state_file::{replace, unwritable};
use crate::config::Text;
use crate::telemetry::audit::{Actor, Audit, Heard};
use crate::telemetry::difference::{Difference, Reach};

/// Accepted files that are kept.
const MOST_FILES: usize = 20;
/// And their bytes, beside those of the newest two.
const MOST_FILE_BYTES: u64 = 32 << 20;

/// Entries that are kept.
pub const MOST_ENTRIES: usize = 500;
/// And their bytes as JSON.
const MOST_ENTRY_BYTES: usize = 4 << 20;
/// Of one entry, more changes than these are counted.
const MOST_CHANGES: usize = 1_000;

/// What the same author changes within this time, in milliseconds, is one entry: a pattern means many services.
const ONE_MOMENT: i64 = 200;

/// What serves instead of the file, and the newest wish that was handled.
const PINNED: &str = "pinned.json";
const HANDLED: &str = "handled.json";

/// As much of a hash as people compare.
const SHORT_HASH: usize = 12;

/// Something that changed, as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub time: Timestamp,
    /// Which configuration was served then, counted from the start of the process.
    pub generation: u64,
    /// Who, as audit lines name them.
    pub by: String,
    /// Who, as the caller said.
    #[serde(default)]
    pub claimed: Option<String>,
    /// Why, in the author's words.
    #[serde(default)]
    pub reason: Option<String>,
    /// The hash of the configuration that is served from then on, where it is another one.
    #[serde(default)]
    pub config: Option<String>,
    /// The hash of the one before.
    #[serde(default)]
    pub before: Option<String>,
    /// What is different since.
    pub changes: Vec<Difference>,
    /// Changes that are not listed.
    #[serde(default)]
    pub more: usize,
}

/// Who changes a configuration, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Who, as we know it.
    pub actor: Actor,
    /// Who, as the caller says.
    pub claimed: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl Author {
    /// An edit of the file.
    pub fn file() -> Self {
        Self { actor: Actor::File, claimed: None, reason: None }
    }
}

/// A configuration of the history that serves instead of the file, until the file changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Its hash.
    pub hash: String,
    /// The hash of the file's text that it was taken instead of.
    pub seen: String,
    /// The same on other replicas: these texts may still come here.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub seen_elsewhere: BTreeSet<String>,
    /// Since when.
    pub since: Timestamp,
    /// Who wanted it, as audit lines name them.
    pub by: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Pinned {
    /// Whether a text of the file is one that it was taken instead of.
    pub fn overrules(&self, hash: &str) -> bool {
        self.seen == hash || self.seen_elsewhere.contains(hash)
    }

    /// The same over this text of the file; any other than that is newer from now on, once the expected one has come.
    pub fn over(mut self, seen: String) -> Self {
        self.seen_elsewhere.remove(&seen);
        Self { seen, ..self }
    }
}

/// An accepted file that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The hash of its text.
    pub hash: String,
    /// When it was accepted for the last time.
    pub accepted: SystemTime,
    bytes: u64,
}

/// Why no configuration of the history has a hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// None begins so, or it is damaged.
    #[error("{0}")]
    Unknown(String),
    /// Several begin so.
    #[error("{0}")]
    Ambiguous(String),
}

/// The history in one directory.
#[derive(Debug)]
pub struct History {
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// One writer at a time.
    writing: Mutex<()>,
    /// Why the last one failed, if it did.
    failure: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The newest last, each with its length as JSON.
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
    /// The newest last.
    files: Vec<Stored>,
    /// Texts that are not written yet.
    unwritten: Vec<Text>,
    pinned: Option<Pinned>,
    handled: Option<Mark>,
    is_entry_unwritten: bool,
    is_pin_unwritten: bool,
    is_handled_unwritten: bool,
}

impl History {
    /// What is kept below this state directory, which need not exist yet.
    pub fn open(state_directory: &Path) -> Arc<Self> {
        let directory = state_directory.join("history");
        let mut inner = Inner { files: read_files(&directory), ..Inner::default() };
        for entry in read_entries(&directory.join("events.jsonl")) {
            inner.push(entry);
        }
        inner.pinned = read_json(&directory.join(PINNED));
        inner.handled = read_json(&directory.join(HANDLED));
        let (writing, failure) = (Mutex::default(), watch::Sender::default());
        Arc::new(Self { directory, inner: Mutex::new(inner), writing, failure })
    }

    /// Keeps every change that the audit log gets from now on, but those of the file: they come with it.
    pub fn listen_to(self: &Arc<Self>, audit: &Audit) {
        let history = self.clone();
        audit.listen(move |heard| history.note(heard));
    }

    fn note(self: &Arc<Self>, heard: &Heard<'_>) {
        if *heard.actor == Actor::File {
            return;
        }
        let entry = Entry {
            time: heard.time,
            generation: heard.generation,
            by: heard.actor.as_str().to_owned(),
            claimed: heard.claimed.map(str::to_owned),
            reason: heard.reason.map(str::to_owned),
            config: None,
            before: None,
            changes: vec![heard.difference.clone()],
            more: 0,
        };
        self.lock().add(entry);
        self.write_soon();
    }

    /// Keeps a configuration that is served from now on.
    pub fn accepted(
        self: &Arc<Self>,
        text: &Text,
        before: Option<&str>,
        mut changes: Vec<Difference>,
        generation: u64,
        author: &Author,
    ) {
        let more = changes.len().saturating_sub(MOST_CHANGES);
        changes.truncate(MOST_CHANGES);
        let hash = text.hash();
        if before == Some(&hash) {
            return self.keep(text);
        }
        let entry = Entry {
            time: Timestamp::now(),
            generation,
            by: author.actor.as_str().to_owned(),
            claimed: author.claimed.clone(),
            reason: author.reason.clone(),
            config: Some(hash.clone()),
            before: before.map(str::to_owned),
            changes,
            more,
        };
        let mut inner = self.lock();
        inner.add(entry);
        inner.keep(text, hash);
        drop(inner);
        self.write_soon();
    }

    /// Keeps a configuration that goes on being served.
    pub fn keep(self: &Arc<Self>, text: &Text) {
        self.lock().keep(text, text.hash());
        self.write_soon();
    }

    /// The hash of the configuration that was served last, as far as that is known.
    pub fn newest(&self) -> Option<String> {
        self.lock().entries.iter().rev().find_map(|(entry, _)| entry.config.clone())
    }

    /// The newest entries first, of one service or of all.
    pub fn entries(&self, service: Option<&str>, limit: usize) -> Vec<Entry> {
        let inner = self.lock();
        let entries = inner.entries.iter().rev().filter_map(|(entry, _)| entry.about(service));
        entries.take(limit).collect()
    }

    /// Accepted files, the newest last.
    pub fn files(&self) -> Vec<Stored> {
        self.lock().files.clone()
    }

    /// Whether a file with this hash has been accepted here, and is kept.
    pub fn knows(&self, hash: &str) -> bool {
        self.lock().files.iter().any(|file| file.hash == hash)
    }

    /// The one hash that begins so.
    ///
    /// # Errors
    ///
    /// None does, or several do.
    pub fn find(&self, beginning: &str) -> Result<String, NotFound> {
        let files = self.files();
        let beginning = beginning.to_ascii_lowercase();
        let mut found = files.iter().filter(|file| file.hash.starts_with(&beginning));
        let known = || {
            let known: Vec<&str> = files.iter().rev().map(|file| short(&file.hash)).collect();
            if known.is_empty() { "none is kept".to_owned() } else { format!("known are {}", known.join(", ")) }
        };
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.hash.clone()),
            (None, _) => {
                Err(NotFound::Unknown(format!("this replica knows no configuration {beginning:?}: {}", known())))
            }
            (Some(_), Some(_)) => Err(NotFound::Ambiguous(format!("several hashes begin so: {}", known()))),
        }
    }

    /// The text of an accepted file.
    ///
    /// # Errors
    ///
    /// It cannot be read any more, or is damaged.
    pub fn text(&self, hash: &str) -> Result<Text, NotFound> {
        if let Some(text) = self.lock().unwritten.iter().find(|text| text.hash() == hash) {
            return Ok(text.clone());
        }
        let gone = |error| NotFound::Unknown(format!("the configuration {} is lost: {error}", short(hash)));
        self.file(hash).read().map_err(gone)?.ok_or_else(|| gone("its file is gone".to_owned()))
    }

    /// What serves instead of the file.
    pub fn pinned(&self) -> Option<Pinned> {
        self.lock().pinned.clone()
    }

    /// Something else, or nothing, serves instead of the file; written with the next [`History::write`].
    pub fn pin(&self, pinned: Option<Pinned>) {
        let mut inner = self.lock();
        inner.is_pin_unwritten |= inner.pinned != pinned;
        inner.pinned = pinned;
    }

    /// The newest wish of any replica for an earlier configuration that was handled here, whatever became of it since.
    pub fn handled(&self) -> Option<Mark> {
        self.lock().handled.clone()
    }

    /// This wish needs nothing any more; written with the next [`History::write`].
    pub fn handle(&self, wish: &Mark) {
        let mut inner = self.lock();
        inner.is_handled_unwritten |= inner.handled.as_ref() != Some(wish);
        inner.handled = Some(wish.clone());
    }

    /// Writes what is not written yet, where nothing waits for it.
    pub fn write_soon(self: &Arc<Self>) {
        let history = self.clone();
        let write = move || drop(history.write());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }

    /// Writes what is not written yet; may wait for the disk.
    ///
    /// # Errors
    ///
    /// One line with the place. It is tried again with the next change, and by whoever watches [`History::failures`].
    pub fn write(&self) -> Result<(), String> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write_all();
        self.failure.send_replace(written.clone().err());
        written
    }

    /// Why what was to be written last is not; `None` where it is. Every attempt is news.
    pub fn failures(&self) -> watch::Receiver<Option<String>> {
        self.failure.subscribe()
    }

    fn write_all(&self) -> Result<(), String> {
        let (texts, entries, pin, handled) = {
            let inner = self.lock();
            let entries = inner.is_entry_unwritten.then(|| inner.lines());
            let pin = inner.is_pin_unwritten.then(|| inner.pinned.clone());
            (inner.unwritten.clone(), entries, pin, inner.is_handled_unwritten.then(|| inner.handled.clone()))
        };
        for text in &texts {
            let file = self.file(&text.hash());
            file.keep(text)?;
            // An older file that is accepted again is a new one.
            let touched = fs::File::options().append(true).open(file.path());
            let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
            self.lock().unwritten.retain(|other| other != text);
        }
        self.prune();
        if let Some((lines, count)) = entries {
            let path = self.directory.join("events.jsonl");
            replace(&path, lines.as_bytes()).map_err(|error| unwritable(&path, &error))?;
            let mut inner = self.lock();
            inner.is_entry_unwritten = inner.lines().1 != count;
        }
        if let Some(pin) = pin {
            self.write_json(PINNED, pin.as_ref())?;
            let mut inner = self.lock();
            inner.is_pin_unwritten = inner.pinned != pin;
        }
        // After the pin: a wish that is handled twice does no harm, and one that is not handled at all does.
        if let Some(handled) = handled {
            self.write_json(HANDLED, handled.as_ref())?;
            let mut inner = self.lock();
            inner.is_handled_unwritten = inner.handled != handled;
        }
        Ok(())
    }

    fn write_json(&self, name: &str, value: Option<&impl Serialize>) -> Result<(), String> {
        let path = self.directory.join(name);
        let written = match value {
            Some(value) => {
                serde_json::to_vec(value).map_err(std::io::Error::from).and_then(|text| replace(&path, &text))
            }
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        };
        written.map_err(|error| unwritable(&path, &error))
    }

    /// Removes files that are not kept any more.
    fn prune(&self) {
        let kept = self.lock().files.clone();
        for file in listed(&self.directory) {
            if !kept.iter().any(|stored| stored.hash == file.hash) {
                let _ = fs::remove_file(self.file(&file.hash).path());
            }
        }
    }

    fn file(&self, hash: &str) -> LastGood {
        LastGood::at(self.directory.join(format!("{hash}.yaml")))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Adds what happened now; what belongs to the last entry becomes part of it.
    fn add(&mut self, entry: Entry) {
        self.is_entry_unwritten = true;
        match self.entries.pop_back() {
            Some((mut last, length)) if last.goes_on_with(&entry) => {
                self.bytes -= length;
                last.changes.extend(entry.changes);
                self.push(last);
            }
            last => {
                self.entries.extend(last);
                self.push(entry);
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        let length = serde_json::to_string(&entry).map_or(0, |line| line.len());
        self.bytes += length;
        self.entries.push_back((entry, length));
        while self.entries.len() > MOST_ENTRIES || (self.bytes > MOST_ENTRY_BYTES && self.entries.len() > 1) {
            self.bytes -= self.entries.pop_front().map_or(0, |(_, length)| length);
        }
    }

    fn keep(&mut self, text: &Text, hash: String) {
        self.files.retain(|file| file.hash != hash);
        let bytes = text.content.len() as u64;
        self.files.push(Stored { hash, accepted: SystemTime::now(), bytes });
        if !self.unwritten.contains(text) {
            self.unwritten.push(text.clone());
        }
        let is_too_much = |files: &[Stored]| {
            let bytes: u64 = files.iter().rev().skip(2).map(|file| file.bytes).sum();
            files.len() > MOST_FILES || bytes > MOST_FILE_BYTES
        };
        while is_too_much(&self.files) {
            let gone = self.files.remove(0);
            self.unwritten.retain(|text| text.hash() != gone.hash);
        }
    }

    /// All entries as lines, and what tells them from others.
    fn lines(&self) -> (String, (usize, Option<Timestamp>, usize)) {
        let mut lines = String::with_capacity(self.bytes + self.entries.len());
        for (entry, _) in &self.entries {
            if let Ok(line) = serde_json::to_string(entry) {
                lines.push_str(&line);
                lines.push('\n');
            }
        }
        let mark = (self.entries.len(), self.entries.back().map(|(entry, _)| entry.time), lines.len());
        (lines, mark)
    }
}

impl Entry {
    /// Whether both are one change of one author.
    fn goes_on_with(&self, next: &Self) -> bool {
        let is_one_moment = next.time.duration_since(self.time).as_millis() < i128::from(ONE_MOMENT);
        self.config.is_none()
            && next.config.is_none()
            && is_one_moment
            && self.changes.len() < MOST_CHANGES
            && (&self.by, &self.claimed, &self.reason, self.generation)
                == (&next.by, &next.claimed, &next.reason, next.generation)
    }

    /// What of it is about a service; `None` when nothing is.
    fn about(&self, service: Option<&str>) -> Option<Self> {
        let Some(service) = service else { return Some(self.clone()) };
        let changes: Vec<_> = self.changes.iter().filter(|change| change.concerns(service)).cloned().collect();
        (!changes.is_empty()).then(|| Self { changes, ..self.clone() })
    }

    /// The commands that go back. Those of configurations that are not in `files` any more are left out.
    /// `reach` tells where a service is now and how far it may rise at once.
    pub fn undo(&self, files: &[Stored], reach: impl Fn(&str) -> Option<Reach>) -> Vec<String> {
        if self.config.is_some() {
            let before = self.before.iter().filter(|before| files.iter().any(|file| file.hash == **before));
            return before.map(|before| format!("migration-proxy rollback --config {}", short(before))).collect();
        }
        let undo = |change: &Difference| change.undo(change.service.as_deref().and_then(&reach));
        self.changes.iter().filter_map(undo).collect()
    }
}

/// As much of a hash as people compare.
pub fn short(hash: &str) -> &str {
    hash.get(..SHORT_HASH).unwrap_or(hash)
}

/// Files with a hash as their name, the oldest first.
fn listed(directory: &Path) -> Vec<Stored> {
    let stored = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let hash = name.to_str()?.strip_suffix(".yaml").filter(|hash| hash.len() == 64)?;
        let metadata = entry.metadata().ok()?;
        Some(Stored { hash: hash.to_owned(), accepted: metadata.modified().ok()?, bytes: metadata.len() })
    };
    let mut files: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().filter_map(stored).collect();
    files.sort_by(|a, b| (a.accepted, &a.hash).cmp(&(b.accepted, &b.hash)));
    files
}

/// The files that are whole.
fn read_files(directory: &Path) -> Vec<Stored> {
    let mut files = listed(directory);
    files.retain(|file| {
        let path = directory.join(format!("{}.yaml", file.hash));
        let read = LastGood::at(path.clone()).read();
        let error = match read {
            Ok(Some(text)) if text.hash() == file.hash => return true,
            Ok(_) => format!("{} has another text than its name says", path.display()),
            Err(error) => error,
        };
        tracing::warn!(%error, "an accepted file of the history cannot be used");
        false
    });
    files
}

fn read_entries(path: &Path) -> Vec<Entry> {
    // Ours never are larger than this.
    let is_ours = is_ours(path, 2 * MOST_ENTRY_BYTES as u64);
    let text = if is_ours { fs::read(path).unwrap_or_default() } else { Vec::new() };
    let mut lost = 0;
    let read = |line: &[u8]| {
        let entry = serde_json::from_slice(line);
        lost += usize::from(entry.is_err());
        entry.ok()
    };
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries = lines.filter_map(read).collect();
    if lost > 0 || (!is_ours && path.exists()) {
        tracing::warn!(entries = lost, path = %path.display(), "entries of the history cannot be read");
    }
    entries
}

/// Whether it may be a file of ours: special files would keep a start waiting.
fn is_ours(path: &Path, most: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= most)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    if !is_ours(path, MOST_ENTRY_BYTES as u64) {
        if path.exists() {
            tracing::error!(path = %path.display(), "what is known of rollbacks cannot be read");
        }
        return None;
    }
    let text = fs::read(path).ok()?;
    let value = serde_json::from_slice(&text);
    if let Err(error) = &value {
        tracing::error!(%error, path = %path.display(), "what is known of rollbacks cannot be read");
    }
    value.ok()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::config::Percent;
    use crate::telemetry::audit::Kind;

    fn text(number: usize) -> Text {
        Text::new("/etc/x.yaml", format!("# {number}\n"))
    }

    fn share(service: &str, to: u16) -> Difference {
        let to = Percent::from_basis_points(to).unwrap();
        Difference::share(Kind::Percentage, service, Percent::ZERO, to)
    }

    fn change(service: &str, at: i64, reason: Option<&str>) -> Entry {
        Entry {
            time: Timestamp::from_millisecond(at).unwrap(),
            generation: 1,
            by: "loopback".to_owned(),
            claimed: None,
            reason: reason.map(str::to_owned),
            config: None,
            before: None,
            changes: vec![share(service, 100)],
            more: 0,
        }
    }

    /// Accepts these texts one after the other.
    fn with_files(directory: &TempDir, numbers: impl IntoIterator<Item = usize>) -> Arc<History> {
        let history = History::open(directory.path());
        for number in numbers {
            let before = history.newest();
            history.accepted(&text(number), before.as_deref(), vec![share("a", 1)], 1, &Author::file());
        }
        history
    }

    fn stored(directory: &TempDir) -> usize {
        listed(&directory.path().join("history")).len()
    }

    #[test]
    fn the_last_files_come_back_by_the_beginning_of_their_hash() {
        let directory = TempDir::new().unwrap();
        with_files(&directory, 0..MOST_FILES + 5);

        let history = History::open(directory.path());

        assert_eq!((history.files().len(), stored(&directory)), (MOST_FILES, MOST_FILES));
        let newest = text(MOST_FILES + 4);
        assert_eq!(history.newest(), Some(newest.hash()));
        let found = history.find(&newest.hash()[..20].to_uppercase()).unwrap();
        assert_eq!((found.clone(), history.text(&found).unwrap().content), (newest.hash(), newest.content));
        assert!(matches!(history.find(&text(0).hash()), Err(NotFound::Unknown(_))), "the oldest have left");
        assert!(matches!(history.find(""), Err(NotFound::Ambiguous(_))));
        assert!(matches!(history.find("../x"), Err(NotFound::Unknown(_))));
    }

    #[test]
    fn a_file_that_serves_again_is_the_newest_and_the_same_one_is_no_entry() {
        let directory = TempDir::new().unwrap();
        let history = with_files(&directory, (0..MOST_FILES).chain([0, 0, MOST_FILES]));

        assert!(history.find(&text(0).hash()).is_ok());
        assert!(history.find(&text(1).hash()).is_err());
        assert_eq!(history.entries(None, 100).len(), MOST_FILES + 2);
        let entry = &history.entries(None, 1)[0];
        assert_eq!(
            entry.undo(&history.files(), |_| None),
            [format!("migration-proxy rollback --config {}", short(&text(0).hash()))]
        );
        assert_eq!(entry.undo(&[], |_| None), Vec::<String>::new(), "nobody can go back to what is gone");
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_the_rest_is_there() {
        let directory = TempDir::new().unwrap();
        with_files(&directory, 0..3);
        let path = |name: &str| directory.path().join("history").join(name);
        fs::write(path(&format!("{}.yaml", text(1).hash())), "damaged").unwrap();
        fs::copy(path(&format!("{}.yaml", text(0).hash())), path(&format!("{}.yaml", text(7).hash()))).unwrap();
        let lines = fs::read_to_string(path("events.jsonl")).unwrap();
        fs::write(path("events.jsonl"), lines.replacen("\"by\"", "\"\"", 1) + "{\"half").unwrap();
        fs::write(path("pinned.json"), "{").unwrap();

        let history = History::open(directory.path());

        let hashes: Vec<String> = history.files().into_iter().map(|file| file.hash).collect();
        assert_eq!(hashes, [text(0).hash(), text(2).hash()]);
        assert_eq!((history.entries(None, 100).len(), history.pinned()), (2, None));
        assert!(history.text(&text(1).hash()).is_err());
    }

    #[test]
    fn one_change_of_one_author_is_one_entry() {
        let mut inner = Inner::default();
        for entry in [
            change("a", 0, Some("x")),
            change("b", 100, Some("x")),
            change("c", 150, Some("y")),
            change("d", 150 + ONE_MOMENT, Some("y")),
        ] {
            inner.add(entry);
        }

        let services: Vec<Vec<&str>> = inner
            .entries
            .iter()
            .map(|(entry, _)| entry.changes.iter().filter_map(|change| change.service.as_deref()).collect())
            .collect();
        assert_eq!(services, [vec!["a", "b"], vec!["c"], vec!["d"]]);
        assert_eq!(inner.entries[0].0.undo(&[], |_| None).len(), 2);
        assert!(inner.entries[0].0.about(Some("c")).is_none());
        assert_eq!(inner.entries[0].0.about(Some("b")).unwrap().changes.len(), 1);
    }

    #[test]
    fn entries_are_bounded_in_number_and_bytes() {
        let mut inner = Inner::default();
        for number in 0..MOST_ENTRIES as i64 + 9 {
            inner.add(change("a", number * 1_000, None));
        }
        assert_eq!(inner.entries.len(), MOST_ENTRIES);
        assert_eq!(inner.lines().0.len(), inner.bytes + MOST_ENTRIES, "with their line feeds");

        for number in 0..9 {
            inner.add(change("a", number, Some(&"x".repeat(1 << 20))));
        }
        assert!(inner.bytes <= MOST_ENTRY_BYTES && !inner.entries.is_empty(), "{}", inner.bytes);
        let many = vec![share("a", 1); MOST_CHANGES + 3];
        let directory = TempDir::new().unwrap();
        let history = History::open(directory.path());
        history.accepted(&text(0), None, many, 1, &Author::file());
        assert_eq!((history.entries(None, 1)[0].changes.len(), history.entries(None, 1)[0].more), (MOST_CHANGES, 3));
    }

    #[test]
    fn a_pin_survives_and_ends() {
        let directory = TempDir::new().unwrap();
        let pin = Pinned {
            hash: text(0).hash(),
            seen: text(1).hash(),
            seen_elsewhere: [text(2).hash()].into(),
            since: Timestamp::from_second(1).unwrap(),
            by: "ops".to_owned(),
            reason: None,
        };
        let history = History::open(directory.path());
        history.pin(Some(pin.clone()));
        history.write().unwrap();
        assert_eq!(History::open(directory.path()).pinned(), Some(pin.clone()));

        history.pin(None);
        history.write().unwrap();
        assert_eq!(History::open(directory.path()).pinned(), None);

        let overruled = |pin: &Pinned| [0, 1, 2, 3].map(|number| pin.overrules(&text(number).hash()));
        assert_eq!(overruled(&pin), [false, true, true, false]);
        assert_eq!(overruled(&pin.over(text(2).hash())), [false, false, true, false], "the way back is a change");
    }

    #[test]
    fn a_wish_that_was_handled_is_remembered() {
        let directory = TempDir::new().unwrap();
        let at = Timestamp::from_second(1).unwrap();
        let mark = Mark { at, replica: "pod-1".to_owned(), by: "ops".to_owned(), reason: None };
        let history = History::open(directory.path());
        assert_eq!(history.handled(), None);

        history.handle(&mark);
        history.write().unwrap();

        assert_eq!(History::open(directory.path()).handled(), Some(mark));
    }

    #[test]
    fn what_cannot_be_written_is_still_there() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("history"), "").unwrap();
        let history = with_files(&directory, 0..2);

        let failures = history.failures();
        assert!(history.write().unwrap_err().starts_with("cannot write "));
        assert!(failures.borrow().as_ref().is_some_and(|error| error.starts_with("cannot write ")));
        assert_eq!(history.text(&text(0).hash()).unwrap(), text(0));

        fs::remove_file(directory.path().join("history")).unwrap();
        history.write().unwrap();
        assert_eq!(*failures.borrow(), None);
        assert_eq!(History::open(directory.path()).entries(None, 9).len(), 2);
    }
}
