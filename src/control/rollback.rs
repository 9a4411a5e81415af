//! An earlier configuration, which serves until the file changes again: how it is asked for, and how whoever reloads
//! serves it. Where replicas share their state, the newest wish is part of that, and each of them handles it once: one that
//! does not have the configuration says so and stays as it is. A file that changes after the wish ends it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::candidate::Candidate;
use super::history::{Author, NotFound, Pinned, short};
use super::reload::Reloader;
use super::state::{Mark, Rollback};
use super::status::Trouble;
use super::watch::Watch;
use crate::config::{ConfigError, source};
use crate::telemetry::difference::Difference;

/// Wishes that wait; more of them wait with their author.
const WAITING: usize = 8;

/// Somebody wants an earlier configuration.
pub struct Wish {
    /// The beginning of its hash.
    pub hash: String,
    /// Who, and why.
    pub author: Author,
    answer: oneshot::Sender<Result<RolledBack, RollbackError>>,
}

impl Wish {
    /// Tells the author what became of it; one who has left does not hear it.
    pub fn answer(self, answer: Result<RolledBack, RollbackError>) {
        let _ = self.answer.send(answer);
    }
}

/// What a wish led to.
#[derive(Clone, Debug, PartialEq)]
pub struct RolledBack {
    /// The hash of what is served now.
    pub hash: String,
    /// The hash of what was served before.
    pub before: String,
    /// What is different.
    pub changes: Vec<Difference>,
    /// The file has another text, which is not followed until it changes.
    pub pinned: bool,
}

/// Why an earlier configuration is not served.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// There is none with this hash.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It cannot be served as things are now.
    #[error("it cannot be served any more: {}", .0.summary())]
    Unusable(ConfigError),
    /// The process is on its way out.
    #[error("the process is about to end")]
    Ending,
}

impl From<ConfigError> for RollbackError {
    fn from(error: ConfigError) -> Self {
        Self::Unusable(error)
    }
}

/// Where wishes are brought.
#[derive(Clone, Debug)]
pub struct RollbackHandle(mpsc::Sender<Wish>);

/// A handle, and where its wishes come out.
pub fn channel() -> (RollbackHandle, mpsc::Receiver<Wish>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (RollbackHandle(sender), receiver)
}

impl RollbackHandle {
    /// Serves the configuration whose hash begins so; done when it is in force, also when the caller leaves meanwhile.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be served; nothing was changed.
    pub async fn roll_back(&self, hash: String, author: Author) -> Result<RolledBack, RollbackError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Wish { hash, author, answer }).await.map_err(|_| RollbackError::Ending)?;
        answered.await.unwrap_or(Err(RollbackError::Ending))
    }
}

impl Reloader {
    /// Serves a configuration of the history until the file changes, here and on every replica.
    pub(super) fn roll_back(&mut self, wish: &Wish, watch: &mut Watch) -> Result<RolledBack, RollbackError> {
        let (rolled_back, seen) = self.serve_earlier(&wish.hash, &wish.author, BTreeSet::new(), watch)?;
        let history = &self.parts.history;
        let wanted =
            self.parts.keeper.want_everywhere(&rolled_back.hash, &seen, &wish.author, history.handled().as_ref());
        if let Some(mark) = wanted {
            history.handle(&mark);
        }
        self.lacks(None);
        Ok(rolled_back)
    }

    /// Handles the newest wish of all replicas, unless that was done before or a file is newer.
    pub(super) fn follow_rollback(&mut self, watch: &mut Watch) {
        let Some(wish) = self.parts.keeper.rollbacks().borrow().clone() else { return self.lacks(None) };
        let Rollback { hash, seen, mark } = *wish;
        let history = self.parts.history.clone();
        let is_handled = history.handled().is_some_and(|handled| !mark.is_newer_than(&handled));
        let is_file_later = self.file_since.is_some_and(|since| since >= mark.at);
        if is_file_later && (is_handled || !seen.contains(&self.file)) {
            self.parts.keeper.end_rollback(&mark);
        } else if is_handled {
            self.expect_overruled(&hash, seen, &mark);
            return self.lacks(None);
        } else {
            let author = Author { actor: mark.elsewhere(), claimed: None, reason: mark.reason.clone() };
            // Where all of that was served before, the file is ahead of it.
            let is_ahead = seen.iter().all(|seen| history.knows(seen));
            match self.serve_earlier(&hash, &author, seen, watch) {
                Ok((_, seen)) if is_ahead => self.parts.keeper.overrule(&mark, &seen),
                Ok(_) => {}
                Err(error) => {
                    let (who, short) = (author.actor.as_str(), short(&hash));
                    let text = format!("the rollback to {short} by {who} is not followed on this replica: {error}");
                    return self.lacks(Some((hash, text)));
                }
            }
            tracing::warn!(hash, by = author.actor.as_str(), "an earlier configuration serves until the file changes");
        }
        if !is_handled {
            history.handle(&mark);
            history.write_soon();
        }
        self.lacks(None);
    }

    /// What a wish that was handled here has overruled on other replicas since then may still come here.
    fn expect_overruled(&mut self, hash: &str, mut seen_elsewhere: BTreeSet<String>, mark: &Mark) {
        let pinned = self.parts.history.pinned();
        let seen = pinned.as_ref().map_or(&self.file, |pinned| &pinned.seen);
        self.retain_to_come(&mut seen_elsewhere, seen);
        let is_known = pinned.as_ref().map_or(seen_elsewhere.is_empty(), |pinned| {
            pinned.hash != hash || seen_elsewhere.is_subset(&pinned.seen_elsewhere)
        });
        if is_known || self.served.text().hash() != hash {
            return;
        }
        let seen = seen.clone();
        let is_here = mark.replica == self.parts.status.replica();
        let by = if is_here { mark.by.clone() } else { mark.elsewhere().as_str().to_owned() };
        let (hash, since, reason) = (hash.to_owned(), mark.at, mark.reason.clone());
        self.pin(Some(Pinned { hash, seen, seen_elsewhere, since, by, reason }));
    }

    /// What was here before does not come as something old: who writes it once more means it.
    fn retain_to_come(&self, seen_elsewhere: &mut BTreeSet<String>, seen: &str) {
        seen_elsewhere.retain(|elsewhere| elsewhere != seen && !self.parts.history.knows(elsewhere));
    }

    /// Another text of the file counts from now on. It is newer than whatever was handled before, also where the clock of
    /// the replica that was asked goes ahead.
    pub(super) fn file_counts(&mut self, hash: String) {
        if self.file != hash {
            let handled = self.parts.history.handled().map(|handled| handled.at);
            self.file_since = Some(handled.map_or_else(Timestamp::now, |handled| handled.max(Timestamp::now())));
            self.file = hash;
        }
    }

    /// Serves the configuration whose hash begins so; gives the hash of the file's text that it serves instead of, too.
    fn serve_earlier(
        &mut self,
        beginning: &str,
        author: &Author,
        mut seen_elsewhere: BTreeSet<String>,
        watch: &mut Watch,
    ) -> Result<(RolledBack, String), RollbackError> {
        let hash = self.parts.history.find(beginning)?;
        let before = self.served.text().hash();
        let seen = source::read(&self.parts.path).map_or_else(|error| error.text.hash(), |text| text.hash());
        self.retain_to_come(&mut seen_elsewhere, &seen);
        let pinned = (seen != hash || !seen_elsewhere.is_empty()).then(|| Pinned {
            hash: hash.clone(),
            seen: seen.clone(),
            seen_elsewhere,
            since: Timestamp::now(),
            by: author.actor.as_str().to_owned(),
            reason: author.reason.clone(),
        });
        let is_pinned = pinned.is_some();
        let changes = if hash == before {
            self.pin(pinned);
            Vec::new()
        } else {
            let candidate = Candidate::decode(self.parts.history.text(&hash)?, &self.parts.environment)?;
            candidate.check_tokens()?;
            let ready = self.try_out(&candidate)?;
            self.apply(candidate, ready, author, pinned, watch)
        };
        self.file.clone_from(&seen);
        self.start_probers();
        Ok((RolledBack { hash, before, changes, pinned: is_pinned }, seen))
    }

    /// Says which configuration is wanted and not to be had here.
    fn lacks(&self, wanted: Option<(String, String)>) {
        let (hash, text) = wanted.unzip();
        let status = &self.parts.status;
        status.update(|configuration| configuration.lacks.clone_from(&hash));
        if status.set_trouble(Trouble::RollbackNotFollowed, text.clone())
            && let Some(text) = text
        {
            tracing::error!("{text}");
        }
    }
}
