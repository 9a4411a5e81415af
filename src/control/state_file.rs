//! `state_dir/state.yaml`: the state of one replica, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::state::State;
use crate::config::plain;
use crate::upstream::finding::Finding;

/// The first lines, for people who find the file.
const HEAD: &str =
    "# Written by migration-proxy: what update, rollback, safe-mode and freeze changed apart from the file.\n";

/// The last line: a file without it was cut short, and says less than what was in force.
const END: &str = "# The end. A file without this line was cut short.\n";

/// Leftovers of writers that were killed keep so many names busy at most.
const TEMPORARY_NAMES: u32 = 8;

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
            .map_err(|error| format!("cannot write {}: {error}", self.path.display()))
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

/// A new file beside this one. Another process that writes the same one at the same time has another name for it.
fn temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let named = |number: u32| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".tmp{number}"));
        path.with_file_name(name)
    };
    for number in 1..TEMPORARY_NAMES {
        let name = named(number);
        match File::create_new(&name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => return created.map(|file| (file, name)),
        }
    }
    let last = named(TEMPORARY_NAMES);
    match fs::remove_file(&last) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(&last).map(|file| (file, last))
}
