//! Notices that files change: the configuration file and the files that it names. A file is watched by itself, because a
//! log that is written beside it would wake us with every line; a symbolic link by its directory, because the swap of a
//! ConfigMap never touches the file. Contents are compared at every poll too: a watch can be lost or never come about.
//! What a change means is up to the caller.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::config::Reload;
use crate::config::source::MAX_BYTES;

/// Writers need some time between the first event and the last one.
const SETTLE: Duration = Duration::from_millis(50);

/// A file that never comes to rest is read all the same.
const LONGEST_SETTLE: Duration = Duration::from_secs(1);

/// A shorter poll would only burn time.
const SHORTEST_POLL: Duration = Duration::from_millis(50);

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watch {
    config: PathBuf,
    files: BTreeMap<PathBuf, Mark>,
    poll: Duration,
    next_poll: Instant,
    woken: Arc<Notify>,
    settling: Option<Settling>,
    watcher: Option<RecommendedWatcher>,
    /// The watched files and directories, each with its identity at that time.
    watched: HashMap<PathBuf, Option<Identity>>,
    has_warned: bool,
}

/// Device and inode.
type Identity = (u64, u64);

/// What is remembered of a file. All absent: there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mark {
    /// The hash of the content; `None` for what is too large to be read, and for what is no file.
    content: Option<[u8; 32]>,
    /// Device, inode, time of the last write, size.
    writing: Option<(Identity, (i64, i64), u64)>,
}

/// Events came; the files are read once no more of them come.
#[derive(Clone, Copy, Debug)]
struct Settling {
    until: Instant,
    latest: Instant,
}

impl Watch {
    /// A watch over the configuration file, which must not have been read yet: what changes from now on is noticed.
    /// Until [`Watch::configure`] is called there is only a poll.
    pub fn new(config: &Path) -> Self {
        let poll = Duration::from_secs(2);
        Self {
            config: config.to_owned(),
            files: BTreeMap::from([(config.to_owned(), Mark::of(config))]),
            poll,
            next_poll: Instant::now() + poll,
            woken: Arc::default(),
            settling: None,
            watcher: None,
            watched: HashMap::new(),
            has_warned: false,
        }
    }

    /// Takes over the settings of the file.
    pub fn configure(&mut self, settings: &Reload) {
        let poll = settings.poll.max(SHORTEST_POLL);
        if poll != self.poll {
            (self.poll, self.next_poll) = (poll, Instant::now() + poll);
        }
        match (settings.watch, self.watcher.is_some()) {
            (true, false) => self.start_watcher(),
            (false, true) => {
                self.watcher = None;
                self.watched.clear();
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Watches these files beside the configuration file, and no others. Call it before the files are read.
    pub fn set_files(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let mut before = std::mem::take(&mut self.files);
        for file in files.into_iter().chain([self.config.clone()]) {
            let mark =
                before.remove(&file).unwrap_or_else(|| self.files.remove(&file).unwrap_or_else(|| Mark::of(&file)));
            self.files.insert(file, mark);
        }
        self.renew_watches();
    }

    /// Waits for a change; gives the files whose content is another one, and the configuration file also when it was
    /// written anew with the same content. Nothing is lost when the future is dropped.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            self.wait().await;
            // First the watches: what changes after the comparison must be an event again.
            self.renew_watches();
            let changed = self.compare();
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    /// Until events have settled or the next poll is due.
    async fn wait(&mut self) {
        loop {
            let due = self.settling.map_or(self.next_poll, |settling| settling.until);
            tokio::select! {
                () = self.woken.notified() => {
                    let now = Instant::now();
                    let latest = self.settling.map_or(now + LONGEST_SETTLE, |settling| settling.latest);
                    self.settling = Some(Settling { until: latest.min(now + SETTLE), latest });
                }
                () = sleep_until(due) => {
                    self.settling = None;
                    self.next_poll = Instant::now() + self.poll;
                    return;
                }
            }
        }
    }

    fn compare(&mut self) -> Vec<PathBuf> {
        let mut changed = Vec::new();
        for (file, mark) in &mut self.files {
            let now = Mark::of(file);
            let is_another = now.content != mark.content;
            let was_written = now.writing != mark.writing;
            if is_another || was_written && (*file == self.config || now.content.is_none()) {
                changed.push(file.clone());
            }
            *mark = now;
        }
        changed
    }

    fn start_watcher(&mut self) {
        let woken = self.woken.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is an access too, and must not wake us again. An error may stand for lost events.
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            woken.notify_one();
        });
        match watcher {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.warn(&error),
        }
        self.renew_watches();
    }

    /// Watches what tells of changes of our files. One that was removed and made again is another one, and its old watch
    /// is silent.
    fn renew_watches(&mut self) {
        let Some(mut watcher) = self.watcher.take() else { return };
        let wanted: BTreeSet<PathBuf> = self.files.keys().filter_map(|file| teller(file)).collect();
        self.watched.retain(|path, _| {
            let stays = wanted.contains(path);
            if !stays {
                let _ = watcher.unwatch(path);
            }
            stays
        });
        for path in wanted {
            let identity = fs::metadata(&path).ok().map(|metadata| identity(&metadata));
            if self.watched.get(&path).is_some_and(|known| *known == identity && identity.is_some()) {
                continue;
            }
            // Fails when the watch is gone already.
            let _ = watcher.unwatch(&path);
            let watched = watcher.watch(&path, RecursiveMode::NonRecursive);
            if let (Err(error), Some(_)) = (&watched, identity) {
                self.warn(error);
            }
            self.watched.insert(path, identity.filter(|_| watched.is_ok()));
        }
        self.watcher = Some(watcher);
    }

    fn warn(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(%error, poll = ?self.poll, "changes of files are not reported by the system, only polled for");
        }
    }
}

impl Mark {
    fn of(file: &Path) -> Self {
        let Ok(metadata) = fs::metadata(file) else { return Self::default() };
        let writing = (identity(&metadata), (metadata.mtime(), metadata.mtime_nsec()), metadata.size());
        // Opening a pipe would wait for its writer.
        let content = metadata.is_file().then(|| content(file).ok().flatten()).flatten();
        Self { content, writing: Some(writing) }
    }
}

fn content(file: &Path) -> io::Result<Option<[u8; 32]>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_BYTES).then(|| Sha256::digest(&bytes).into()))
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// What has to be watched to hear of changes of this file: itself, or the directory that it is named in when it is a
/// symbolic link, or not there.
fn teller(file: &Path) -> Option<PathBuf> {
    if fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_file()) {
        return Some(file.to_owned());
    }
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn settings(watch: bool, poll: Duration) -> Reload {
        Reload { watch, poll, on_lost_host: crate::config::OnLostHost::Warn, state_dir: PathBuf::new() }
    }

    /// Only events can be noticed in time.
    fn by_events(config: &Path) -> Watch {
        let mut watch = Watch::new(config);
        watch.configure(&settings(true, Duration::from_secs(3600)));
        watch
    }

    /// Only polls notice anything.
    fn by_polls(config: &Path) -> Watch {
        let mut watch = Watch::new(config);
        watch.configure(&settings(false, SHORTEST_POLL));
        watch
    }

    async fn changed(watch: &mut Watch) -> Vec<PathBuf> {
        tokio::time::timeout(DEADLINE, watch.changed()).await.expect("a change is noticed")
    }

    /// A ConfigMap volume as the kubelet lays it out and swaps it.
    fn swap(folder: &Path, version: &str, text: &str) -> PathBuf {
        let data = folder.join(format!("..{version}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("migration.yaml"), text).unwrap();
        symlink(format!("..{version}"), folder.join("..data_tmp")).unwrap();
        let before = fs::read_link(folder.join("..data"));
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        let file = folder.join("migration.yaml");
        match before {
            Ok(before) => fs::remove_dir_all(folder.join(before)).unwrap(),
            Err(_) => symlink("..data/migration.yaml", &file).unwrap(),
        }
        file
    }

    #[tokio::test]
    async fn the_swap_of_a_config_map_is_noticed_also_with_equal_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = swap(folder.path(), "v1", "a");

        for mut watch in [by_events(&file), by_polls(&file)] {
            swap(folder.path(), "v2", "b");
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
            swap(folder.path(), "v1", "b");
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
        }
    }

    #[tokio::test]
    async fn a_rename_a_write_in_place_and_a_removal_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("migration.yaml");
        let other = folder.path().join("other");
        fs::write(&file, "a").unwrap();

        for mut watch in [by_events(&file), by_polls(&file)] {
            fs::write(&other, "renamed").unwrap();
            fs::rename(&other, &file).unwrap();
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
            fs::write(&file, "in place").unwrap();
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
            fs::remove_file(&file).unwrap();
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
            fs::write(&file, "made again").unwrap();
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
        }
    }

    #[tokio::test]
    async fn an_editor_that_keeps_the_file_under_another_name_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, backup) = (folder.path().join("migration.yaml"), folder.path().join("migration.yaml~"));
        fs::write(&file, "a").unwrap();
        let mut watch = by_events(&file);

        for text in ["b", "c"] {
            fs::rename(&file, &backup).unwrap();
            fs::write(&file, text).unwrap();
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
            fs::hard_link(&file, folder.path().join(text)).unwrap();
            fs::write(folder.path().join("new"), "d").unwrap();
            fs::rename(folder.path().join("new"), &file).unwrap();
            assert_eq!(changed(&mut watch).await, [file.as_path()]);
        }
    }

    #[tokio::test]
    async fn only_links_and_files_that_are_missing_need_their_directory() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, missing] = ["file", "link", "missing"].map(|name| folder.path().join(name));
        fs::write(&file, "a").unwrap();
        symlink(&file, &link).unwrap();

        assert_eq!(
            [&file, &link, &missing].map(|path| teller(path)),
            [&*file, folder.path(), folder.path()].map(|path| Some(path.to_owned()))
        );
    }

    #[tokio::test]
    async fn a_directory_that_is_made_again_is_watched_again() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("config");
        let file = folder.join("migration.yaml");
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "a").unwrap();
        let mut watch = by_events(&file);

        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(changed(&mut watch).await, [file.as_path()]);
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "b").unwrap();
        watch.configure(&settings(true, SHORTEST_POLL));
        assert_eq!(changed(&mut watch).await, [file.as_path()]);
        watch.configure(&settings(true, Duration::from_secs(3600)));
        fs::write(&file, "c").unwrap();
        assert_eq!(changed(&mut watch).await, [file.as_path()]);
    }

    #[tokio::test]
    async fn of_other_files_only_the_content_counts() {
        let folder = tempfile::tempdir().unwrap();
        let [config, cert, key] = ["migration.yaml", "tls.crt", "tls.key"].map(|name| folder.path().join(name));
        for file in [&config, &cert] {
            fs::write(file, "a").unwrap();
        }
        let mut watch = by_events(&config);
        watch.set_files([cert.clone(), key.clone(), cert.clone()]);

        // The same bytes in another file are no change.
        fs::copy(&cert, folder.path().join("other")).unwrap();
        fs::rename(folder.path().join("other"), &cert).unwrap();
        fs::write(&key, "k").unwrap();
        assert_eq!(changed(&mut watch).await, [key.as_path()]);

        watch.set_files([cert.clone()]);
        fs::write(&key, "no more").unwrap();
        fs::write(&cert, "b").unwrap();
        assert_eq!(changed(&mut watch).await, [cert]);
    }

    #[tokio::test]
    async fn a_change_before_the_wait_and_over_a_dropped_wait_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("migration.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = by_events(&file);

        fs::write(&file, "b").unwrap();
        while watch.settling.is_none() {
            let _ = tokio::time::timeout(Duration::from_millis(1), watch.changed()).await;
        }

        assert_eq!(changed(&mut watch).await, [file]);
    }

    #[test]
    fn a_pipe_and_a_huge_file_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let huge = folder.path().join("huge");
        File::create(&huge).unwrap().set_len(MAX_BYTES + 1).unwrap();

        for file in [huge.as_path(), folder.path(), Path::new("/dev/zero")] {
            let mark = Mark::of(file);
            assert!(mark.content.is_none() && mark.writing.is_some(), "{}", file.display());
        }
        assert_eq!(Mark::of(&folder.path().join("none")), Mark::default());
    }
}
