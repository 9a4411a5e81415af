//! A state that replicas share: where it is kept, and what is known here of what is kept there. [`Keeper`] works on it
//! through the [`Remote`], which may be slow, refuse, or be gone.
//!
//! [`Keeper`]: super::keeper::Keeper

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::merge::{self, Merged};
use super::state::{Declared, State};
use super::state_file::StateFile;
use crate::readiness::Token;
use crate::upstream::finding::Finding;

/// A start that knows nothing waits no longer than this for what is shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where the state of this process is kept.
pub struct Store {
    /// The only copy, or a copy of what is shared for a start without it.
    pub file: StateFile,
    /// What replicas share, and what keeps the process from being ready until it is known.
    pub remote: Option<(Arc<dyn Remote>, Token)>,
}

impl From<StateFile> for Store {
    fn from(file: StateFile) -> Self {
        Self { file, remote: None }
    }
}

/// What a [`Remote`] is asked for.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, RemoteError>> + Send + 'a>>;

/// A place that several replicas read and write, one after the other.
pub trait Remote: Send + Sync {
    /// What is there now.
    fn read(&self) -> Asked<'_, Found>;

    /// Replaces what is there, unless that is not `known` any more; gives the revision of what is there then.
    fn write<'a>(&'a self, state: &'a State, known: &'a Found) -> Asked<'a, Revision>;

    /// Whether it may be read, followed and written, found out without changing anything.
    fn examine(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>>;
}

/// What was found, and as of when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub content: Content,
    /// Which version of it this is.
    pub revision: Revision,
}

/// What is kept somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Nothing yet, or nothing any more.
    #[default]
    Nothing,
    /// A state.
    State(State),
    /// Something that makes no sense.
    Unreadable {
        /// What it says.
        text: String,
        /// Why it makes no sense.
        error: String,
    },
}

/// Which version something is; `None`: it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision(pub Option<String>);

impl Revision {
    /// Revisions of one object are numbers that grow.
    fn is_after(&self, other: &Self) -> bool {
        let number = |revision: &Self| revision.0.as_ref().and_then(|text| text.parse::<u64>().ok());
        match (number(self), number(other)) {
            (Some(this), Some(other)) => this > other,
            _ => self != other,
        }
    }
}

/// Why what is shared cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Another replica was faster.
    #[error("other replicas write all the time")]
    Conflict,
    /// It answers, and says no.
    #[error("{0}")]
    Refused(String),
    /// It does not answer.
    #[error("{0}")]
    Unreachable(String),
}

/// How something was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// It was read when so much had been learnt before: it is the truth if nothing has been learnt since.
    Read(u64),
    /// It was told or written: it counts if it is newer than what is known.
    Told,
}

/// What is known of what is shared.
pub(super) struct Shared {
    /// What was found last; what is in force differs from it by what could not be stored yet.
    pub(super) base: State,
    pub(super) found: Found,
    /// Counts what was learnt.
    pub(super) learnt: u64,
    /// Until something is known for the first time.
    pub(super) opening: Option<Opening>,
    /// Why nothing can be read or written at this time.
    pub(super) lost: Option<String>,
}

/// A start that does not know yet what is shared.
pub(super) struct Opening {
    /// What the file declared when this replica ran last.
    pub(super) before: Option<Declared>,
    /// Given back when what is shared is known, or has been waited for long enough.
    pub(super) token: Option<Token>,
    pub(super) since: Instant,
}

impl Shared {
    /// Nothing is known but what was known when this process last ran.
    pub(super) fn unknown(base: State, opening: Opening) -> Self {
        Self { base, found: Found::default(), learnt: 0, opening: Some(opening), lost: None }
    }

    /// What `found` makes of what is in force; `None` when it is no news.
    pub(super) fn learn(&mut self, ours: &State, found: Found, how: Learnt) -> Option<Merged> {
        let is_authoritative = match how {
            Learnt::Read(before) => before == self.learnt,
            Learnt::Told => false,
        };
        let is_first = self.opening.is_some();
        let is_news =
            if is_authoritative { found != self.found } else { found.revision.is_after(&self.found.revision) };
        if !is_news && !is_first {
            return None;
        }
        self.learnt += 1;
        let theirs = match &found.content {
            Content::State(state) => state.clone(),
            // Whoever empties or breaks it wants nothing in particular: what is in force stays, and is written again.
            Content::Nothing => State::default(),
            Content::Unreadable { .. } => self.base.clone(),
        };
        let base = if found.content == Content::Nothing { State::default() } else { self.base.clone() };
        let merged = merge::merge(&base, ours, &theirs);
        self.base = theirs;
        self.found = found;
        Some(merged)
    }
}

/// The pause before another attempt, doubled from time to time and never the same for two replicas.
pub(super) fn pause(tries: u32, shortest: Duration, longest: Duration) -> Duration {
    let pause = shortest.saturating_mul(1 << tries.min(16)).min(longest);
    pause.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plain;

    fn state(switch: &str) -> State {
        let text = format!("{switch}: {{at: '2024-01-01T00:00:00Z', replica: pod-1, by: loopback}}");
        plain::from_text(&text).unwrap()
    }

    fn found(revision: &str, state: State) -> Found {
        Found { content: Content::State(state), revision: Revision(Some(revision.to_owned())) }
    }

    fn known() -> Shared {
        let opening = Opening { before: None, token: None, since: Instant::now() };
        let mut shared = Shared::unknown(State::default(), opening);
        shared.learn(&State::default(), found("10", State::default()), Learnt::Told).unwrap();
        shared.opening = None;
        shared
    }

    #[test]
    fn what_is_told_counts_when_it_is_newer() {
        for (revision, is_news) in [("9", false), ("10", false), ("11", true), ("101", true), ("odd", true)] {
            let mut shared = known();
            let learnt = shared.learn(&State::default(), found(revision, state("freeze")), Learnt::Told);
            assert_eq!(learnt.map(|merged| merged.state), is_news.then(|| state("freeze")), "{revision}");
        }
    }

    #[test]
    fn what_is_read_is_the_truth_unless_something_was_learnt_meanwhile() {
        let mut shared = known();
        let before = shared.learnt;
        // A restored API server counts from a lower number.
        let restored = shared.learn(&State::default(), found("3", state("freeze")), Learnt::Read(before));
        assert_eq!(restored.unwrap().state, state("freeze"));

        let late = shared.learn(&state("freeze"), found("2", State::default()), Learnt::Read(before));
        assert_eq!(late, None, "the answer was on its way while something newer was learnt");
        let again = shared.learn(&state("freeze"), found("3", state("freeze")), Learnt::Read(shared.learnt));
        assert_eq!(again, None, "no news");
    }

    #[test]
    fn what_is_emptied_or_broken_takes_nothing_away() {
        for content in [Content::Nothing, Content::Unreadable { text: "[".to_owned(), error: "odd".to_owned() }] {
            let mut shared = known();
            shared.learn(&State::default(), found("11", state("freeze")), Learnt::Told);
            let ours = state("freeze");

            let vanished = Found { content: content.clone(), revision: Revision(Some("12".to_owned())) };
            let merged = shared.learn(&ours, vanished, Learnt::Told).unwrap();

            assert_eq!(merged.state, ours);
            // What vanished is written again, what is broken waits for the next change.
            assert_eq!(shared.base == ours, content != Content::Nothing);
        }
    }

    #[test]
    fn pauses_grow_up_to_a_bound_and_differ() {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(30));
        for tries in 0..100 {
            let most = shortest.saturating_mul(1 << tries.min(16)).min(longest);
            let pause = pause(tries, shortest, longest);
            assert!(pause >= most / 2 && pause <= most, "{tries}: {pause:?}");
        }
    }
}
