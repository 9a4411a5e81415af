//! What the [`Keeper`] does otherwise when replicas share the state. A change is made where all of them see it, and only
//! then here: whoever was slower reads again and makes it on top. What takes traffic off new is made here even when nobody
//! can be told; it is told as soon as somebody listens. What others change is taken over as it is heard of.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::change::{Change, Refusal};
use super::history::Author;
use super::keeper::{AGAIN, Applied, ChangeError, EXPIRY, Inner, Keeper, Request, UNKNOWN, tell_expired};
use super::merge::{self, Lost, Merged};
use super::shared::{self, Content, Found, Learnt, PATIENCE, Remote, RemoteError, Shared};
use super::state::{Changed, Declared, Entry, Mark, Rollback, State};
use super::status::Trouble;
use crate::telemetry::audit::Actor;
use crate::telemetry::difference::Difference;

/// How long a change may take with all its tries, and how long one that takes traffic off new waits for anybody.
const WHOLE: Duration = Duration::from_secs(4);
const HURRY: Duration = Duration::from_secs(1);

/// Whoever has just answered gets at least so much time to do it again.
const A_MOMENT: Duration = Duration::from_millis(250);

/// Between two tries of a change that another replica was faster with.
const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(40);

/// What a change makes of the newest state; `None` when there is nothing to do.
type Step<'a> = &'a (dyn Fn(&Inner) -> Result<Option<Changed>, Refusal> + Sync);

impl Keeper {
    /// What is shared was found to be this.
    pub fn learn(&self, found: Found, how: Learnt) {
        let changes = self.settle(found, how);
        if !changes.is_empty() {
            let mut services: Vec<&str> = changes.iter().filter_map(|change| change.service.as_deref()).collect();
            services.dedup();
            let state = self.lock().state.clone();
            for change in &changes {
                let author = state.author(change);
                let actor = author.map_or_else(Actor::some_replica, Mark::elsewhere);
                self.telemetry.audit.tell(change, author.and_then(|author| author.reason.as_deref()), &actor);
            }
            tracing::info!(changes = changes.len(), services = services.join(","), "changed on another replica");
        }
    }

    /// How much has been learnt so far, for [`Learnt::Read`].
    pub fn learnt(&self) -> u64 {
        self.lock().shared.as_ref().map_or(0, |shared| shared.learnt)
    }

    /// The newest wish for an earlier configuration, as it changes. There is none where nothing is shared.
    pub fn rollbacks(&self) -> watch::Receiver<Option<Box<Rollback>>> {
        self.lock().rollback.subscribe()
    }

    /// An earlier configuration serves here instead of the file's text `seen`, and shall everywhere. Gives the mark of the
    /// wish, which is newer than every one that is known; `None` where nothing is shared.
    pub fn want_everywhere(&self, hash: &str, seen: &str, author: &Author, handled: Option<&Mark>) -> Option<Mark> {
        let mut mark = self.mark(&author.actor, author.reason.as_deref());
        let mut inner = self.lock();
        inner.shared.as_ref()?;
        let known = inner.state.rollback.as_ref().map(|known| &known.mark);
        for earlier in known.into_iter().chain(handled) {
            // Clocks of replicas differ.
            let next = earlier.at.checked_add(SignedDuration::from_micros(1)).unwrap_or(Timestamp::MAX);
            mark.at = mark.at.max(next);
        }
        let seen = Some(seen).filter(|seen| *seen != hash).map(str::to_owned).into_iter().collect();
        let rollback = Rollback { hash: hash.to_owned(), seen, mark: mark.clone() };
        let next = inner.state.roll_back(rollback);
        inner.put(next, false);
        drop(inner);
        self.changed.notify_one();
        Some(mark)
    }

    /// A file is newer than this wish: nobody who starts from now on shall follow it.
    pub fn end_rollback(&self, mark: &Mark) {
        self.put_if_any(|state| state.end_rollback(mark));
    }

    /// This wish was handled here, where the file has the text `seen`: it may come to other nodes later.
    pub fn overrule(&self, mark: &Mark, seen: &str) {
        self.put_if_any(|state| state.overrule(mark, seen));
    }

    fn put_if_any(&self, change: impl FnOnce(&State) -> Option<State>) {
        let mut inner = self.lock();
        if let Some(next) = change(&inner.state) {
            inner.put(next, false);
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Tells the others what only this replica knows, without waiting for the next occasion.
    ///
    /// # Errors
    ///
    /// Why it is not possible now. It is tried again until it is.
    pub async fn tell_others(&self) -> Result<(), String> {
        let Some(remote) = &self.remote else { return Ok(()) };
        let _turn = self.turn.lock().await;
        self.share_what_is_unstored(&**remote).await
    }

    /// What is shared cannot be read or followed; what is in force stays.
    pub fn lose(&self, error: &RemoteError) {
        let text = format!("the state is not shared with other replicas: {error}");
        if let Some(shared) = &mut self.lock().shared {
            shared.lost = matches!(error, RemoteError::Unreachable(_)).then(|| error.to_string());
        }
        if self.status.set_trouble(Trouble::StateUnshared, Some(text)) {
            self.telemetry.process.state_failed();
            tracing::error!(%error, "the state is not shared with other replicas, what is in force stays");
        }
    }

    /// Watching what is shared is not allowed, or is again.
    pub fn limit(&self, error: Option<String>) {
        let text = error.map(|error| format!("changes of other replicas are heard of late: {error}"));
        if self.status.set_trouble(Trouble::StateUnwatched, text.clone())
            && let Some(error) = text
        {
            tracing::error!("{error}");
        }
    }

    pub(super) async fn change_shared(
        &self,
        remote: &dyn Remote,
        change: &Change,
        request: Request<'_>,
    ) -> Result<Applied, ChangeError> {
        let asked = self.mark(request.actor, request.reason);
        let known = self.lock().state.clone();
        let _turn = self.turn.lock().await;
        let step = |inner: &Inner| {
            let overtaken = merge::overtaken(&known, &inner.state, change, &inner.declared, &asked);
            if let Some((service, winner)) = overtaken {
                return Err(Refusal::Overtaken(told_overtaken(&service, &winner)));
            }
            inner.state.change(change, &inner.declared, &asked).map(Some)
        };
        match self.share(remote, &step, request).await {
            Ok(applied) => Ok(applied.unwrap_or(Applied { entries: Vec::new(), unstored: None })),
            Err(error) => {
                if let ChangeError::Refused(refusal) = &error {
                    self.audit_refusal(refusal, request);
                }
                Err(error)
            }
        }
    }

    /// Makes a change for all replicas, on top of whatever they have made of the state by then.
    async fn share(
        &self,
        remote: &dyn Remote,
        step: Step<'_>,
        request: Request<'_>,
    ) -> Result<Option<Applied>, ChangeError> {
        let (start, mut tries) = (Instant::now(), 0);
        loop {
            let (known, lost, outcome) = {
                let inner = self.lock();
                let shared = inner.shared.as_ref();
                let is_known = shared.is_some_and(|shared| shared.opening.is_none());
                let known = shared.map(|shared| shared.found.clone()).filter(|_| is_known);
                (known, shared.and_then(|shared| shared.lost.clone()), step(&inner))
            };
            let Some((next, entries)) = outcome? else { return Ok(None) };
            let adds = entries.iter().any(Entry::adds_to_new);
            let most = if adds { WHOLE } else { HURRY };
            let least = if tries == 0 { Duration::ZERO } else { A_MOMENT };
            let patience = most.saturating_sub(start.elapsed()).max(least);
            let mut attempted = None;
            let error = match (lost, known) {
                // Nobody has answered for a while: what takes traffic off new does not wait for that to be seen again.
                (Some(lost), _) if !adds => RemoteError::Unreachable(lost),
                (_, None) => match self.read_again(remote, patience).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                (_, Some(known)) => match within(patience, remote.write(&next, &known)).await {
                    Ok(revision) => {
                        self.settle(Found { content: Content::State(next), revision }, Learnt::Told);
                        self.in_force(&entries, request);
                        return Ok(Some(Applied { entries, unstored: None }));
                    }
                    Err(error @ RemoteError::Unreachable(_)) => {
                        attempted = Some(next);
                        error
                    }
                    Err(RemoteError::Conflict) => {
                        tokio::time::sleep(shared::pause(tries, SHORTEST, LONGEST)).await;
                        tries += 1;
                        match self.read_again(remote, most.saturating_sub(start.elapsed()).max(A_MOMENT)).await {
                            Ok(()) if start.elapsed() < most => continue,
                            // Whoever has answered until the time was over did answer.
                            Ok(()) => RemoteError::Conflict,
                            Err(error) => error,
                        }
                    }
                    Err(error) => error,
                },
            };
            if self.came_about(attempted.as_ref()) {
                self.in_force(&entries, request);
                return Ok(Some(Applied { entries, unstored: None }));
            }
            if adds {
                return Err(ChangeError::Unstored(error.to_string()));
            }
            return self.only_here(step, request, error.to_string());
        }
    }

    /// Whether a change whose answer was lost was made all the same, and has been heard of.
    fn came_about(&self, attempted: Option<&State>) -> bool {
        let inner = self.lock();
        attempted.is_some_and(|attempted| inner.shared.as_ref().is_some_and(|shared| shared.base == *attempted))
    }

    /// Makes a change on this replica alone. It is stored when that is possible again.
    fn only_here(
        &self,
        step: Step<'_>,
        request: Request<'_>,
        unstored: String,
    ) -> Result<Option<Applied>, ChangeError> {
        let mut inner = self.lock();
        // Something may have been learnt while nothing could be stored.
        let Some((next, entries)) = step(&inner)? else { return Ok(None) };
        if next != inner.state {
            inner.put(next, false);
        }
        drop(inner);
        if !entries.is_empty() {
            self.in_force(&entries, request);
        }
        Ok(Some(Applied { entries, unstored: Some(unstored) }))
    }

    async fn read_again(&self, remote: &dyn Remote, patience: Duration) -> Result<(), RemoteError> {
        let learnt = self.learnt();
        let found = within(patience, remote.read()).await?;
        self.learn(found, Learnt::Read(learnt));
        Ok(())
    }

    /// Takes over what is shared; tells what is served otherwise from now on.
    fn settle(&self, found: Found, how: Learnt) -> Vec<Difference> {
        let mark = self.mark(&Actor::File, None);
        let unreadable = match &found.content {
            Content::Unreadable { error, .. } => Some(format!("what replicas share makes no sense: {error}")),
            Content::Nothing | Content::State(_) => None,
        };
        let mut inner = self.lock();
        let Inner { state, declared, shared: Some(shared), .. } = &mut *inner else { return Vec::new() };
        shared.lost = None;
        let learnt = shared.learn(state, found, how);
        let opening = shared.opening.take();
        let Some(Merged { state: mut next, lost }) = learnt else {
            drop(inner);
            self.status.set_trouble(Trouble::StateUnshared, None);
            return Vec::new();
        };
        let before = opening.as_ref().map(|opening| opening.before.as_ref());
        let followed = before.and_then(|before| next.follow(before, declared, &mark));
        let cleared = followed.map_or_else(Vec::new, |(followed, entries)| {
            next = followed;
            entries
        });
        let is_stored = next == shared.base;
        if next != *state {
            inner.put(next, is_stored);
        } else {
            inner.stored = if is_stored { inner.version } else { UNKNOWN };
        }
        drop(inner);
        self.status.set_trouble(Trouble::StateUnshared, None);
        if self.status.set_trouble(Trouble::StateLost, unreadable.clone())
            && let Some(error) = unreadable
        {
            self.telemetry.process.state_failed();
            tracing::error!(error, "the shared state is lost, what is in force stays");
        }
        let changes = self.live.snapshot().take_over(&self.overrides());
        self.close_streams();
        self.audit(&cleared, Request { actor: &Actor::File, claimed: None, reason: None });
        self.audit_lost(&lost);
        self.changed.notify_one();
        // Ready from here on, and not before.
        drop(opening);
        changes
    }

    /// The file of this replica has changed the state, or not; tells what is to be audited.
    pub(super) fn follow_shared(
        &self,
        before: Option<&Declared>,
        followed: Option<Changed>,
        mark: &Mark,
    ) -> Vec<Entry> {
        let mut inner = self.lock();
        let Inner { declared, shared: Some(shared), .. } = &mut *inner else { return Vec::new() };
        let is_opening = shared.opening.is_some();
        if is_opening && let Some((base, _)) = shared.base.follow(before, declared, mark) {
            // The file is followed once more when it is known what is shared: until then this is nobody's intent.
            shared.base = base;
        }
        let Some((next, entries)) = followed else { return Vec::new() };
        let base = shared.base.clone();
        inner.put(next.clone(), false);
        drop(inner);
        // Kept before the file counts as seen: a process that ends in between must not bring the override back.
        let kept = self.file.base().write(&base).and_then(|()| self.file.write(&next));
        if let Err(error) = kept {
            tracing::debug!(error, "no copy of the state");
        }
        self.changed.notify_one();
        if is_opening { Vec::new() } else { entries }
    }

    /// Does what is due, and tells how long nothing will be.
    pub(super) async fn upkeep_shared(&self, remote: &dyn Remote) -> Duration {
        let now = Timestamp::now();
        if let Some(rest) = self.wait_for_what_is_shared() {
            return rest;
        }
        let mark = self.mark(EXPIRY.actor, EXPIRY.reason);
        let expire = |inner: &Inner| Ok(inner.state.expire(now, &mark));
        if let Ok(Some(applied)) = self.share(remote, &expire, EXPIRY).await {
            tell_expired(&applied.entries);
        }
        let is_shared = self.share_what_is_unstored(remote).await.is_ok();
        self.keep_copy().await;
        if is_shared { self.quiet_until_next_clock(now) } else { AGAIN.min(self.quiet_until_next_clock(now)) }
    }

    /// How long the start still waits for what is shared. After that what is known here has to do.
    fn wait_for_what_is_shared(&self) -> Option<Duration> {
        let mut inner = self.lock();
        let opening = inner.shared.as_mut()?.opening.as_mut()?;
        opening.token.as_ref()?;
        let rest = PATIENCE.saturating_sub(opening.since.elapsed());
        if !rest.is_zero() {
            return Some(rest);
        }
        let token = opening.token.take();
        drop(inner);
        drop(token);
        tracing::error!("what replicas share is not known, what was known here last holds");
        None
    }

    /// Tells the others what only this replica knows, or why that is not possible.
    async fn share_what_is_unstored(&self, remote: &dyn Remote) -> Result<(), String> {
        if !self.lock().is_unstored() {
            self.status.set_trouble(Trouble::StateUnstored, None);
            return Ok(());
        }
        let rest = |inner: &Inner| {
            let differs = inner.shared.as_ref().is_some_and(|shared| shared.base != inner.state);
            Ok(differs.then(|| (inner.state.clone(), Vec::new())))
        };
        let error = match self.share(remote, &rest, EXPIRY).await {
            Ok(Some(Applied { unstored: Some(error), .. })) | Err(ChangeError::Unstored(error)) => error,
            Ok(_) | Err(ChangeError::Refused(_)) => {
                self.status.set_trouble(Trouble::StateUnstored, None);
                return Ok(());
            }
        };
        if self.status.set_trouble(Trouble::StateUnstored, Some(format!("other replicas do not know all: {error}"))) {
            self.telemetry.process.state_failed();
            tracing::error!(error, "a change holds on this replica alone");
        }
        Err(error)
    }

    /// The copy serves a start that does not hear what is shared; without it such a start serves declared values.
    async fn keep_copy(&self) {
        let (version, state, base) = {
            let inner = self.lock();
            if inner.version == inner.copied {
                return;
            }
            let base = inner.shared.as_ref().map(|shared| &shared.base).filter(|base| **base != inner.state);
            (inner.version, inner.state.clone(), base.cloned())
        };
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || match base {
            Some(base) => file.base().write(&base).and_then(|()| file.write(&state)),
            None => file.write(&state).map(|()| file.base().remove()),
        });
        self.lock().copied = version;
        if let Ok(Err(error)) = written.await {
            tracing::warn!(error, "no copy of the state, a start without what replicas share serves declared values");
        }
    }

    fn audit_lost(&self, lost: &[Lost]) {
        for Lost { entry, winner } in lost {
            let what = entry.service.as_deref().or(entry.key.as_deref()).unwrap_or_default();
            let reason = told_overtaken(what, winner);
            let request = Request { actor: &Actor::Process, claimed: None, reason: Some(&reason) };
            self.audit(std::slice::from_ref(entry), request);
        }
    }
}

impl Mark {
    /// Who it was, for the history of another replica.
    pub fn elsewhere(&self) -> Actor {
        Actor::Replica(format!("{} on {}", self.by, self.replica).into())
    }
}

impl Inner {
    fn is_unstored(&self) -> bool {
        self.version != self.stored && self.shared.as_ref().is_some_and(|shared: &Shared| shared.base != self.state)
    }
}

fn told_overtaken(service: &str, Mark { at, replica, by, .. }: &Mark) -> String {
    let what = if service.is_empty() { "everything" } else { service };
    format!("a newer change of {what} won: by {by} on {replica} at {}", at.strftime("%F %H:%M:%S UTC"))
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s, it may come about yet", patience.as_secs_f32().ceil());
        Err(RemoteError::Unreachable(text))
    })
}
