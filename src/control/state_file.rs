//! `state_dir/state.yaml`: the state of one replica, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::state::State;
use crate::config::plain;
use crate::upstream::finding::Finding;

/// The first lines, for people who find the file.
const HEAD: &str =
    "# Written by migration-proxy: what update, rollback, safe-mode and freeze changed apart from the file.\n";

/// The last line: a file without it was cut short, and says less than what was in force.
const END: &str = "# The end. A file without this line was cut short.\n";

/// No writer takes so long: what is older was left behind by one that was killed.
const LEFTOVER: Duration = Duration::from_secs(600);

/// Larger files are not ours.
const MAX_BYTES: u64 = 8 << 20;

/// Where the state is stored.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    /// One writer at a time.
    writing: Arc<Mutex<()>>,
}

impl StateFile {
    /// The state below this directory, which need not exist yet.
    pub fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join("state.yaml"), writing: Arc::default() }
    }

    /// Beside a copy that holds more than what replicas share: what they share as far as it was known then.
    pub(super) fn base(&self) -> Self {
        Self { path: self.path.with_file_name("state-shared.yaml"), writing: Arc::default() }
    }

    /// Nothing is stored from now on. What cannot be removed is read again at the next start, as before.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// What is stored; `None` when nothing is.
    ///
    /// # Errors
    ///
    /// It cannot be read or makes no sense; then it is set aside, so that it is not written over.
    pub fn read(&self) -> Result<Option<State>, String> {
        let path = self.path.display();
        let text = match fs::metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if !metadata.is_file() => Err("it is no regular file".to_owned()),
            Ok(metadata) if metadata.len() > MAX_BYTES => Err("it is larger than 8 MiB".to_owned()),
            _ => fs::read_to_string(&self.path).map_err(|error| error.to_string()),
        };
        let whole =
            text.and_then(|text| if text.ends_with(END) { Ok(text) } else { Err("its end is missing".to_owned()) });
        whole.and_then(|text| plain::from_text(&text)).map(Some).map_err(|error| {
            let aside = self.path.with_extension(format!("yaml.unreadable-{}", Timestamp::now().as_second()));
            match fs::rename(&self.path, &aside) {
                Ok(()) => format!("{path} cannot be used ({error}); it is kept as {}", aside.display()),
                Err(_) => format!("{path} cannot be used: {error}"),
            }
        })
    }

    /// Stores the state.
    ///
    /// # Errors
    ///
    /// One line with the place; what was stored before is still there.
    pub fn write(&self, state: &State) -> Result<(), String> {
        let text = plain::to_text(state)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&self.path, format!("{HEAD}{}\n{END}", text.trim_end()).as_bytes())
            .map_err(|error| unwritable(&self.path, &error))
    }
}

/// Whether what commands change could be kept in this directory: tried with a file that is removed at once.
pub fn examine(directory: &Path) -> Finding {
    let name = directory.display();
    // What does not exist yet is made with the first write.
    let existing = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let trial = existing.join(format!(".migration-proxy-doctor-{}", std::process::id()));
    let tried = File::create_new(&trial).and_then(|mut file| file.write_all(b"?"));
    let _ = fs::remove_file(&trial);
    match tried {
        Ok(()) => Finding::ok("state", format!("{name} is writable")),
        Err(error) => Finding::fail(
            "state",
            format!(
                "{name} is not writable ({error}): a restart forgets what commands changed, and the last good file"
            ),
            "mount a volume there and let the process write to it: fsGroup 101 in the Deployment, or chown",
        ),
    }
}

/// What could not be written below the state directory, and the key that names another place.
pub(super) fn unwritable(path: &Path, error: &io::Error) -> String {
    let fix = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; set reload.state_dir to a directory that this user may write to"
        }
        _ => "",
    };
    format!("cannot write {}: {error}{fix}", path.display())
}

/// Replaces a file as a whole, so that a reader, a crash or a full disk never leaves half of it.
///
/// # Errors
///
/// The directory cannot be made or written to; the old file is untouched.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let (mut file, temporary) = temporary(path)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // A leftover would only cost its space.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    // The new name survives a power failure too, where the file system lets a directory be synced.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
    Ok(())
}

/// A new file beside this one, with a name that no other writer has, in whichever process it is.
fn temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    remove_leftovers(path);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".tmp{:016x}", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    File::create_new(&temporary).map(|file| (file, temporary))
}

/// What writers left behind that were killed would only grow. One that was merely slow finds its file gone, and tries again.
fn remove_leftovers(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let other = entry.file_name();
        let rest = other.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFTOVER));
        if is_old && rest.is_some_and(|rest| rest.starts_with(b".tmp")) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::SystemTime;

    use tempfile::TempDir;

    use super::*;
    use crate::control::state::{Mark, Rollback};

    fn state(reason: &str) -> State {
        let by = "ops".to_owned();
        let mark = Mark { at: Timestamp::UNIX_EPOCH, replica: "a".to_owned(), by, reason: Some(reason.to_owned()) };
        State::default().roll_back(Rollback { hash: "0".repeat(64), seen: BTreeSet::new(), mark })
    }

    fn names(directory: &TempDir) -> BTreeSet<String> {
        let entries = fs::read_dir(directory.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_that_was_cut_short_is_never_taken_for_less() {
        let directory = TempDir::new().unwrap();
        let file = StateFile::in_directory(directory.path());
        file.write(&state("why")).unwrap();
        assert_eq!(file.read(), Ok(Some(state("why"))));
        let whole = fs::read_to_string(&file.path).unwrap();

        for end in 0..whole.len() {
            fs::write(&file.path, &whole[..end]).unwrap();
            let error = file.read().unwrap_err();
            assert!(error.contains("its end is missing"), "{end}: {error}");
            assert!(error.contains("it is kept as ") && !file.path.exists(), "{end}: {error}");
        }
        assert_eq!(file.read(), Ok(None));
    }

    #[test]
    fn who_may_not_write_is_told_the_key_that_names_the_place() {
        for (kind, names_key) in [(ErrorKind::PermissionDenied, true), (ErrorKind::StorageFull, false)] {
            let text = unwritable(Path::new("/var/lib/x/state.yaml"), &kind.into());
            assert!(text.starts_with("cannot write /var/lib/x/state.yaml: "), "{text}");
            assert_eq!(text.contains("reload.state_dir"), names_key, "{text}");
        }
    }

    #[test]
    fn writers_of_several_processes_never_mix() {
        const EACH: usize = 40;
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("state.yaml");
        let content = |writer: usize| vec![b'a' + writer as u8; 64 * 1024 + writer];
        replace(&path, &content(0)).unwrap();
        let is_over = AtomicBool::new(false);

        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let seen = fs::read(&path).unwrap();
                    assert_eq!(seen, content((seen[0] - b'a').into()), "a reader finds one of them, whole");
                }
            });
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let (path, content) = (&path, &content);
                    scope.spawn(move || (0..EACH).for_each(|_| replace(path, &content(writer)).unwrap()))
                })
                .collect();
            let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            is_over.store(true, Relaxed);
            assert!(reader.join().is_ok() && written.iter().all(Result::is_ok));
        });

        assert_eq!(names(&directory), ["state.yaml".to_owned()].into(), "nothing is left behind");
    }

    #[test]
    fn what_killed_writers_left_behind_goes_when_nobody_can_be_writing_it() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("state.yaml");
        for name in ["state.yaml.tmp", "state.yaml.tmp1", "state.yaml.tmpff", "state.yaml.unreadable-1", "other.tmp1"] {
            fs::write(directory.path().join(name), "half").unwrap();
        }
        for old in ["state.yaml.tmp", "state.yaml.tmp1", "state.yaml.unreadable-1", "other.tmp1"] {
            let file = File::options().append(true).open(directory.path().join(old)).unwrap();
            file.set_modified(SystemTime::now() - LEFTOVER * 2).unwrap();
        }

        replace(&path, b"whole").unwrap();

        let left = ["other.tmp1", "state.yaml", "state.yaml.tmpff", "state.yaml.unreadable-1"].map(str::to_owned);
        assert_eq!(names(&directory), left.into());
    }
}
