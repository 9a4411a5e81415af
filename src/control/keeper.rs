//! Keeps the [`State`] and puts it in force: takes changes of operators one after the other, stores each before it is
//! reported as done, lets clocks run out, and follows the file. Traffic never waits for any of it. What is otherwise when
//! replicas share the state is in [`super::sharing`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::change::{Change, Refusal};
use super::shared::{Opening, Remote, Shared, Store};
use super::state::{Declared, Entry, Mark, Rollback, State};
use super::state_file::{self, StateFile};
use super::status::{Status, Trouble};
use crate::config::{Config, Percent};
use crate::routing::live::Live;
use crate::routing::overrides::Overrides;
use crate::shutdown::Drain;
use crate::telemetry::Telemetry;
use crate::telemetry::audit::{Actor, Event, Kind, Value};
use crate::upstream::finding::Finding;

/// No version: what is stored is not known to be any of them.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// A state that could not be stored is tried again after this time.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// The state of this process.
pub struct Keeper {
    pub(super) file: StateFile,
    /// Where replicas share the state, when they do.
    pub(super) remote: Option<Arc<dyn Remote>>,
    pub(super) live: Arc<Live>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) status: Arc<Status>,
    /// One change after the other.
    pub(super) turn: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
    pub(super) changed: Notify,
}

pub(super) struct Inner {
    pub(super) state: State,
    pub(super) declared: Declared,
    /// Streams that were told to end later than this have not been told here yet.
    streams_told: Timestamp,
    /// Counts states, so that whoever stored one knows whether it is still the newest.
    pub(super) version: u64,
    pub(super) stored: u64,
    /// What is known of what replicas share, when they do; the file is a copy then.
    pub(super) shared: Option<Shared>,
    pub(super) copied: u64,
    /// What replicas share of `state.rollback`, for whoever serves it.
    pub(super) rollback: watch::Sender<Option<Box<Rollback>>>,
}

/// What a change led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// What is different now.
    pub entries: Vec<Entry>,
    /// Why it does not survive a restart, when it does not.
    pub unstored: Option<String>,
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Something speaks against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It adds to the traffic on new, and could not be stored.
    #[error("nothing was changed: {0}")]
    Unstored(String),
}

impl Keeper {
    /// Puts the stored state in force over what `config` declares. `before` is the configuration that was served last,
    /// if any ever was; a state that cannot be read is set aside, and the declared values hold.
    pub fn open(
        store: impl Into<Store>,
        config: &Config,
        before: Option<&Config>,
        live: Arc<Live>,
        telemetry: Arc<Telemetry>,
        status: Arc<Status>,
    ) -> Arc<Self> {
        let Store { file, remote } = store.into();
        let state = file.read().unwrap_or_else(|error| {
            tracing::error!(%error, "the state is lost, the file's own values hold");
            status.set_trouble(Trouble::StateLost, Some(error));
            telemetry.process.state_failed();
            None
        });
        let state = state.unwrap_or_default();
        let before = before.map(Declared::of);
        let (remote, token) = remote.unzip();
        let shared = remote.is_some().then(|| {
            let base = file.base().read().ok().flatten().unwrap_or_else(|| state.clone());
            Shared::unknown(base, Opening { before: before.clone(), token, since: Instant::now() })
        });
        let rollback = state.rollback.clone().filter(|_| shared.is_some());
        let inner = Inner {
            state,
            declared: Declared::of(config),
            streams_told: Timestamp::now(),
            version: 0,
            stored: 0,
            shared,
            copied: 0,
            rollback: watch::Sender::new(rollback),
        };
        let (turn, changed) = (tokio::sync::Mutex::default(), Notify::new());
        let keeper = Arc::new(Self { file, remote, live, telemetry, status, turn, inner: Mutex::new(inner), changed });
        let cleared = keeper.follow_from(before.as_ref(), config);
        keeper.audit(&cleared, Request { actor: &Actor::File, claimed: None, reason: None });
        let overrides = keeper.overrides();
        keeper.live.snapshot().take_over(&overrides);
        keeper
    }

    /// What is in force otherwise than declared.
    pub fn overrides(&self) -> Overrides {
        self.lock().state.overrides()
    }

    /// When the share of this service goes back by itself.
    pub fn confirm_by(&self, service: &str) -> Option<Timestamp> {
        self.lock().state.confirm_by(service)
    }

    /// The share to which this service goes back by itself.
    pub fn back_to(&self, service: &str) -> Option<Percent> {
        self.lock().state.back_to(service)
    }

    /// Whether increases of this service are refused; of everything when none is named.
    pub fn is_frozen(&self, service: Option<&str>) -> bool {
        self.lock().state.is_frozen(service)
    }

    /// Whether the state could be stored now, and whatever else its store can say of itself.
    pub async fn examine(&self) -> Vec<Finding> {
        let directory = self.live.snapshot().config.reload.state_dir.clone();
        let written = tokio::task::spawn_blocking(move || state_file::examine(&directory)).await;
        let mut findings: Vec<Finding> = written.into_iter().collect();
        if let Some(remote) = &self.remote {
            findings.extend(remote.examine().await);
        }
        findings
    }

    /// Makes a change to its end, also when whoever asked for it has left meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Keeper::change`].
    pub async fn submit(
        self: &Arc<Self>,
        change: Change,
        actor: Actor,
        claimed: Option<String>,
        reason: Option<String>,
    ) -> Result<Applied, ChangeError> {
        let keeper = self.clone();
        #[expect(clippy::disallowed_methods, reason = "owned by the control runtime; ends with the one change")]
        let work = tokio::spawn(async move {
            let request = Request { actor: &actor, claimed: claimed.as_deref(), reason: reason.as_deref() };
            keeper.change(&change, request).await
        });
        work.await.unwrap_or_else(|error| Err(ChangeError::Unstored(error.to_string())))
    }

    /// Makes a change, and tells when it is in force and stored. One that takes traffic off new is made even when it
    /// cannot be stored. It must not be dropped half-way: [`Keeper::submit`] sees to that.
    ///
    /// # Errors
    ///
    /// It was refused or could not be stored; nothing was changed.
    pub async fn change(&self, change: &Change, request: Request<'_>) -> Result<Applied, ChangeError> {
        if let Some(remote) = &self.remote {
            return self.change_shared(&**remote, change, request).await;
        }
        let _turn = self.turn.lock().await;
        loop {
            let mark = self.mark(request.actor, request.reason);
            let (version, outcome) = {
                let inner = self.lock();
                (inner.version, inner.state.change(change, &inner.declared, &mark))
            };
            let (next, entries) = outcome.inspect_err(|refusal| self.audit_refusal(refusal, request))?;
            // Whatever becomes of it, the stored state is another one now until the newest is stored again.
            self.lock().stored = UNKNOWN;
            self.changed.notify_one();
            let unstored = self.store(&next).await.err();
            if let Some(error) = &unstored
                && entries.iter().any(Entry::adds_to_new)
            {
                return Err(ChangeError::Unstored(error.clone()));
            }
            let mut inner = self.lock();
            // The file may have changed meanwhile; then the change is made on top of that.
            if inner.version != version {
                continue;
            }
            inner.put(next, unstored.is_none());
            drop(inner);
            self.in_force(&entries, request);
            return Ok(Applied { entries, unstored });
        }
    }

    /// Another configuration is about to be served: gives what is in force on top of it, and what it cleared, which is to
    /// be audited.
    pub fn follow(&self, config: &Config) -> (Overrides, Vec<Entry>) {
        let before = self.lock().declared.clone();
        let cleared = self.follow_from(Some(&before), config);
        (self.overrides(), cleared)
    }

    /// What would be in force on top of a configuration and what would be cleared, if it were served.
    pub fn preview(&self, config: &Config) -> (Overrides, Vec<Entry>) {
        let mark = self.mark(&Actor::File, None);
        let inner = self.lock();
        let next = inner.state.follow(Some(&inner.declared), &Declared::of(config), &mark);
        next.map_or_else(|| (inner.state.overrides(), Vec::new()), |(next, cleared)| (next.overrides(), cleared))
    }

    fn follow_from(&self, before: Option<&Declared>, config: &Config) -> Vec<Entry> {
        let mark = self.mark(&Actor::File, None);
        let mut inner = self.lock();
        inner.declared = Declared::of(config);
        let followed = inner.state.follow(before, &inner.declared, &mark);
        if inner.shared.is_some() {
            drop(inner);
            return self.follow_shared(before, followed, &mark);
        }
        let Some((next, entries)) = followed else { return Vec::new() };
        inner.put(next.clone(), false);
        let version = inner.version;
        drop(inner);
        // Stored before the file counts as seen: a process that ends in between must not bring the override back.
        if self.note_stored(self.file.write(&next)).is_ok() {
            self.lock().stored = version;
        }
        self.changed.notify_one();
        entries
    }

    /// Lets clocks run out and stores what is not stored yet, until the drain starts.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        loop {
            let pause = self.upkeep().await;
            tokio::select! {
                () = drain.started() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does what is due, and tells how long nothing will be.
    async fn upkeep(&self) -> Duration {
        let _turn = self.turn.lock().await;
        if let Some(remote) = &self.remote {
            return self.upkeep_shared(&**remote).await;
        }
        let now = Timestamp::now();
        self.expire(now);
        let (version, unstored) = {
            let inner = self.lock();
            (inner.version, (inner.version != inner.stored).then(|| inner.state.clone()))
        };
        if let Some(state) = unstored {
            match self.store(&state).await {
                Ok(()) => self.lock().stored = version,
                Err(_) => return AGAIN,
            }
        }
        self.quiet_until_next_clock(now)
    }

    pub(super) fn quiet_until_next_clock(&self, now: Timestamp) -> Duration {
        let next = self.lock().state.next_expiry();
        // Clocks are wall clocks, which may be set: looked at now and then.
        let most = Duration::from_secs(30);
        next.map_or(most, |next| Duration::try_from(next.duration_since(now)).unwrap_or_default().min(most))
    }

    fn expire(&self, now: Timestamp) {
        let mark = self.mark(EXPIRY.actor, EXPIRY.reason);
        let mut inner = self.lock();
        let Some((next, entries)) = inner.state.expire(now, &mark) else { return };
        inner.put(next, false);
        drop(inner);
        tell_expired(&entries);
        self.in_force(&entries, EXPIRY);
    }

    async fn store(&self, state: &State) -> Result<(), String> {
        let (file, state) = (self.file.clone(), state.clone());
        let written = tokio::task::spawn_blocking(move || file.write(&state)).await;
        self.note_stored(written.unwrap_or_else(|error| Err(error.to_string())))
    }

    pub(super) fn note_stored(&self, result: Result<(), String>) -> Result<(), String> {
        if let Err(error) = &result {
            self.telemetry.process.state_failed();
            if self.status.set_trouble(Trouble::StateUnstored, Some(error.clone())) {
                tracing::error!(%error, "the state cannot be stored, changes do not survive a restart");
            }
        } else {
            self.status.set_trouble(Trouble::StateUnstored, None);
        }
        result
    }

    pub(super) fn in_force(&self, entries: &[Entry], request: Request<'_>) {
        self.live.snapshot().take_over(&self.overrides());
        self.close_streams();
        self.audit(entries, request);
        self.changed.notify_one();
    }

    /// Sends home what lasts on new where somebody asked for it since the last time.
    pub(super) fn close_streams(&self) {
        let snapshot = self.live.snapshot();
        let mut inner = self.lock();
        let mut newest = inner.streams_told;
        for (name, at, over) in inner.state.streams().filter(|(_, at, _)| *at > inner.streams_told) {
            newest = newest.max(at);
            if let Some(service) = snapshot.service(name) {
                service.new.long_lived.close(over);
            }
        }
        inner.streams_told = newest;
    }

    pub(super) fn audit(&self, entries: &[Entry], Request { actor, claimed, reason }: Request<'_>) {
        for entry in entries {
            self.telemetry.audit.record_difference(entry, reason, actor, claimed);
        }
    }

    pub(super) fn audit_refusal(&self, refusal: &Refusal, Request { actor, claimed, reason }: Request<'_>) {
        let refusal = refusal.to_string();
        let event = Event { kind: Kind::Refused, service: None, from: None, to: Some(Value::Text(&refusal)), reason };
        self.telemetry.audit.record(&event, actor, claimed);
    }

    pub(super) fn mark(&self, actor: &Actor, reason: Option<&str>) -> Mark {
        let replica = self.status.replica().to_owned();
        Mark { at: Timestamp::now(), replica, by: actor.as_str().to_owned(), reason: reason.map(str::to_owned) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who wants a change, and why.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who, as we know it.
    pub actor: &'a Actor,
    /// Who, as the caller says.
    pub claimed: Option<&'a str>,
    /// Why, in the caller's words.
    pub reason: Option<&'a str>,
}

/// A clock that runs out is nobody's command.
pub(super) const EXPIRY: Request<'static> =
    Request { actor: &Actor::Process, claimed: None, reason: Some("not confirmed in time") };

pub(super) fn tell_expired(entries: &[Entry]) {
    for entry in entries {
        tracing::warn!(service = entry.service, "nobody confirmed the share in time, it went back");
    }
}

impl Inner {
    pub(super) fn put(&mut self, state: State, is_stored: bool) {
        if self.shared.is_some() {
            self.rollback.send_if_modified(|known| {
                let is_news = *known != state.rollback;
                known.clone_from(&state.rollback);
                is_news
            });
        }
        self.state = state;
        self.version += 1;
        if is_stored {
            self.stored = self.version;
        }
    }
}
