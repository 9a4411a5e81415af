//! Where log lines go: a file, or one of the process's own descriptors. A write takes a whole batch in one call and
//! never waits long: a destination that is full or stuck costs lines, not time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Pauses on a descriptor that does not block and takes nothing, and how many of them in a row end the write.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSES: u32 = 40;

/// A log's path cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("open {}: {source}", path.display())]
pub struct SinkError {
    /// The path as configured.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// An open destination.
#[derive(Debug)]
pub struct Sink {
    file: File,
}

impl Sink {
    /// Opens `path` for appending. `/dev/stdout` and `/dev/stderr` are our own descriptors, whatever they are: opening
    /// them by name fails for sockets, and truncates nothing but also starts a file at offset 0.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        let file = match path.to_str() {
            Some("/dev/stdout") => io::stdout().as_fd().try_clone_to_owned().map(File::from),
            Some("/dev/stderr") => io::stderr().as_fd().try_clone_to_owned().map(File::from),
            _ => open_file(path),
        };
        file.map(|file| Self { file }).map_err(|source| SinkError { path: path.into(), source })
    }

    /// Writes all batches, if the destination takes them at once in one call. After an error the number tells how many
    /// bytes were written before it.
    pub fn write(&mut self, batches: &[&[u8]]) -> Result<(), (usize, io::Error)> {
        write_all(&mut self.file, batches)
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    // Without a reader, opening a named pipe only for writing would wait for one.
    let pipe = path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    OpenOptions::new().append(true).read(pipe).create(!pipe).open(path)
}

fn write_all(out: &mut impl Write, batches: &[&[u8]]) -> Result<(), (usize, io::Error)> {
    let mut slices: Vec<IoSlice<'_>> = batches.iter().map(|batch| IoSlice::new(batch)).collect();
    let mut rest = &mut slices[..];
    let mut written = 0;
    let mut pauses = 0;
    // Removes empty slices, so that an empty rest means the end.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match out.write_vectored(rest) {
            Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
            Ok(length) => {
                written += length;
                pauses = 0;
                IoSlice::advance_slices(&mut rest, length);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && pauses < PAUSES => {
                pauses += 1;
                thread::sleep(PAUSE);
            }
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::fs;

    use super::*;

    /// Answers calls from a script and keeps what was taken.
    struct Scripted {
        answers: VecDeque<io::Result<usize>>,
        taken: Vec<u8>,
        calls: usize,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.calls += 1;
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let length = self.answers.pop_front().unwrap_or(Ok(all.len()))?.min(all.len());
            self.taken.extend_from_slice(&all[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted(answers: impl IntoIterator<Item = io::Result<usize>>) -> Scripted {
        Scripted { answers: answers.into_iter().collect(), taken: Vec::new(), calls: 0 }
    }

    #[test]
    fn several_batches_are_one_call() {
        let mut out = scripted([]);
        write_all(&mut out, &[b"one\n", b"", b"two\n"]).unwrap();
        assert_eq!((out.taken.as_slice(), out.calls), (&b"one\ntwo\n"[..], 1));
    }

    #[test]
    fn nothing_is_no_call() {
        let mut out = scripted([]);
        write_all(&mut out, &[b"", b""]).unwrap();
        assert_eq!(out.calls, 0);
    }

    #[test]
    fn short_writes_and_interruptions_are_continued() {
        let mut out = scripted([Ok(5), Err(ErrorKind::Interrupted.into()), Err(ErrorKind::WouldBlock.into()), Ok(1)]);
        write_all(&mut out, &[b"one\n", b"two\n"]).unwrap();
        assert_eq!(out.taken, b"one\ntwo\n");
    }

    #[test]
    fn a_full_disk_ends_the_write_and_says_how_far_it_came() {
        let mut out = scripted([Ok(6), Err(ErrorKind::StorageFull.into())]);
        let (written, error) = write_all(&mut out, &[b"one\n", b"two\n"]).unwrap_err();
        assert_eq!((written, error.kind()), (6, ErrorKind::StorageFull));
    }

    #[test]
    fn files_are_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "before\n").unwrap();

        Sink::open(&path).unwrap().write(&[b"after\n"]).unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }

    #[test]
    fn an_unopenable_path_is_named() {
        let error = Sink::open(Path::new("/nonexistent/log")).unwrap_err();
        assert!(error.to_string().starts_with("open /nonexistent/log: No such file"), "{error}");
    }

    #[test]
    fn our_own_descriptors_can_always_be_opened() {
        for path in ["/dev/stdout", "/dev/stderr"] {
            Sink::open(Path::new(path)).unwrap().write(&[b""]).unwrap();
        }
    }
}
