//! What becomes of a look at the file, told to everybody: status, metrics, log, audit and history; and the copies that are
//! kept of what serves.

use std::collections::HashMap;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::candidate::{Candidate, one_line};
use super::history::{Author, short};
use super::reload::{Outcome, Parts, Reloader};
use super::status::{Status, Trouble};
use super::{expiry, lost_hosts, mounts};
use crate::config::{ConfigError, Problem, Severity};
use crate::telemetry::Telemetry;
use crate::telemetry::audit::{Actor, Kind};
use crate::telemetry::difference::{Difference, Said};
use crate::telemetry::labels::ReloadResult;

/// More problems than this are counted in the log instead of listed.
const MOST_PROBLEMS: usize = 20;

impl Reloader {
    /// Tells everybody about another text.
    pub(super) fn announce(&self, candidate: &Candidate, changes: &[Difference], author: &Author) {
        let Parts { telemetry, status, path, history, .. } = &self.parts;
        let warnings: Vec<String> = mounts::warning(path).into_iter().chain(candidate.warning_lines()).collect();
        let hash = candidate.text().hash();
        let before = status.update(|configuration| {
            let before = configuration.clone();
            configuration.generation += 1;
            configuration.loaded_at = Timestamp::now();
            configuration.last_error = None;
            configuration.warnings.clone_from(&warnings);
            configuration.hash.clone_from(&hash);
            configuration.file.clone_from(&candidate.text().name);
            before
        });
        let generation = before.generation + 1;
        telemetry.audit.set_generation(generation);
        let Author { actor, claimed, reason } = author;
        let hashes = (short(&before.hash), short(&hash));
        // What was asked for on another replica was audited there.
        if !matches!(actor, Actor::Replica(_)) {
            telemetry.audit.record_configuration(changes, hashes, reason.as_deref(), actor, claimed.as_deref());
        }
        history.accepted(candidate.text(), Some(&before.hash), changes.to_vec(), generation, author);
        telemetry.process.configuration(generation, &hash);
        telemetry.process.reloaded(ReloadResult::Applied, SystemTime::now());
        let services = candidate.config().services.len();
        tracing::info!(generation, services, "configuration changed");
        log_warnings(warnings.iter().filter(|warning| !before.warnings.contains(warning)));
        status.set_trouble(Trouble::LastGoodServes, None);
        status.set_trouble(Trouble::Tokens, None);
        self.keep_as_last_good(candidate);
    }

    /// Clients of hosts that are not claimed any more get an error from now on; it is shown until the next load.
    pub(super) fn warn_of_lost_hosts(&self, candidate: &Candidate) {
        let Parts { live, status, .. } = &self.parts;
        let lost = lost_hosts::find(&live.snapshot(), candidate.config(), Instant::now());
        let text = (!lost.is_empty()).then(|| {
            let hosts = lost_hosts::listed(&lost);
            tracing::warn!(hosts, "the new configuration drops hosts that had traffic in the last 5 minutes");
            format!("the configuration dropped hosts that had traffic: {hosts}")
        });
        status.set_trouble(Trouble::LostHosts, text);
    }

    /// Keeps an accepted file for a start with a broken one. A slow disk must hold up nothing here.
    fn keep_as_last_good(&self, candidate: &Candidate) {
        let Parts { telemetry, status, last_good, .. } = &self.parts;
        last_good.offer(candidate.text().clone());
        let (telemetry, status, last_good) = (telemetry.clone(), status.clone(), last_good.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(kept) = last_good.keep_offered() {
                note_kept(&telemetry, &status, &kept);
            }
        });
    }

    /// What could not be kept is tried again: a disk is not full for ever.
    pub(super) fn keep_again(&self) -> Option<JoinHandle<()>> {
        let Parts { telemetry, status, last_good, history, .. } = &self.parts;
        let history = status.has_trouble(Trouble::HistoryUnstored).then(|| history.clone());
        let is_last_good_unstored = status.has_trouble(Trouble::LastGoodUnstored);
        if is_last_good_unstored {
            last_good.offer(self.served.text().clone());
        }
        let (telemetry, status, last_good) = (telemetry.clone(), status.clone(), last_good.clone());
        (history.is_some() || is_last_good_unstored).then(|| {
            tokio::task::spawn_blocking(move || {
                if let Some(kept) = last_good.keep_offered() {
                    note_kept(&telemetry, &status, &kept);
                }
                // Whether it could be written is told by itself.
                drop(history.map(|history| history.write()));
            })
        })
    }

    /// Whether the history could be written the last time.
    pub(super) fn note_history(&self, failure: Option<String>) {
        let Parts { telemetry, status, .. } = &self.parts;
        if failure.is_some() {
            telemetry.process.state_failed();
        }
        let text = failure.map(|error| format!("the history is not kept: {error}"));
        if let (true, Some(text)) = (status.set_trouble(Trouble::HistoryUnstored, text.clone()), text) {
            tracing::error!("{text}");
        }
    }

    /// The file was broken at the start.
    pub(super) fn serves_last_good(&self, error: &ConfigError) {
        let (count, problems) = listed(error);
        let file = &self.served.text().name;
        tracing::error!(
            errors = count,
            problems,
            serving = file,
            "the configuration is broken, the last good one serves"
        );
        let Parts { status, .. } = &self.parts;
        status.update(|configuration| configuration.last_error = Some(error.summary()));
        status.set_trouble(Trouble::LastGoodServes, Some(format!("the last good configuration serves: {file}")));
    }

    /// The file cannot be served.
    pub(super) fn reject(&self, error: &ConfigError) -> Outcome {
        let Parts { telemetry, status, .. } = &self.parts;
        telemetry.process.reloaded(ReloadResult::Rejected, SystemTime::now());
        let generation = status.update(|configuration| {
            configuration.last_error = Some(error.summary());
            configuration.generation
        });
        let (count, problems) = listed(error);
        tracing::error!(generation, errors = count, problems, "configuration rejected, the running one stays");
        Outcome::Rejected
    }

    /// When the certificates in use end.
    pub(super) fn show_certificates(&self) {
        let Parts { telemetry, status, certificates, live, .. } = &self.parts;
        let ends = expiry::of(&certificates.current(), &live.snapshot());
        telemetry.process.certificates(ends.clone());
        status.update(|configuration| configuration.certificates = ends);
    }

    /// A start with what there is beats no start; a reload would have kept what it had.
    pub(super) fn warn_of_ended_certificates(&self) {
        let now = Timestamp::now().as_second();
        let certificates = self.parts.status.configuration().certificates;
        for ended in certificates.iter().filter(|certificate| certificate.not_after < now) {
            let (side, file) = (ended.side.as_str(), ended.file.display());
            tracing::error!(side, service = ended.service, %file, "a certificate has expired and is used all the same");
        }
    }

    /// These keys differ from what the process started with.
    pub(super) fn show_restart_needed(&self, keys: &[String]) {
        let Parts { telemetry, status, .. } = &self.parts;
        telemetry.process.restart_needed(!keys.is_empty());
        let before = status.update(|configuration| std::mem::replace(&mut configuration.restart_needed, keys.to_vec()));
        if !keys.is_empty() && keys != before {
            tracing::warn!(keys = keys.join(", "), "changed keys wait for a restart");
        }
    }
}

/// Everything that another configuration changed, each thing once: overrides that it cleared, what is in force otherwise
/// than before, and what it declares otherwise beside that.
pub(super) fn joined(
    cleared: Vec<Difference>,
    effective: Vec<Difference>,
    declared: Vec<Difference>,
) -> Vec<Difference> {
    let kind_of = |cleared: &Difference| match &cleared.to {
        Some(Said::Share(_)) => Kind::Percentage,
        Some(Said::Text(text)) if matches!(text.as_str(), "on" | "off") => Kind::Enabled,
        _ => Kind::Methods,
    };
    let mut told: HashMap<Option<&str>, Vec<&Difference>> = HashMap::new();
    for one in &cleared {
        told.entry(one.service.as_deref()).or_default().push(one);
    }
    let is_told = |one: &Difference| {
        told.get(&one.service.as_deref())
            .into_iter()
            .flatten()
            .any(|cleared| kind_of(cleared) == one.kind && (&cleared.from, &cleared.to) == (&one.from, &one.to))
    };
    let effective: Vec<_> = effective.into_iter().filter(|one| !is_told(one)).collect();
    let is_in_force = |kind| matches!(kind, Kind::Percentage | Kind::Enabled | Kind::Methods | Kind::SafeMode);
    // Services that come or go have no share before or after.
    let is_more = |one: &Difference| !is_in_force(one.kind) || one.from.is_none() || one.to.is_none();
    let declared = declared.into_iter().filter(is_more);
    cleared.into_iter().chain(effective).chain(declared).collect()
}

/// Whether an accepted file could be kept.
pub(super) fn note_kept(telemetry: &Telemetry, status: &Status, kept: &Result<(), String>) {
    if kept.is_err() {
        telemetry.process.state_failed();
    }
    if let (true, Err(error)) = (status.set_trouble(Trouble::LastGoodUnstored, kept.clone().err()), kept) {
        tracing::error!(%error, "the accepted file cannot be kept, a start with a broken one will fail");
    }
}

/// Says each warning of a file; of very many only the first ones.
pub(super) fn log_warnings<'a>(mut warnings: impl Iterator<Item = &'a String>) {
    for warning in warnings.by_ref().take(MOST_PROBLEMS) {
        tracing::warn!(warning, "configuration");
    }
    let more = warnings.count();
    if more > 0 {
        tracing::warn!(more, "more warnings about the configuration: see check");
    }
}

/// How many errors there are, and the first of them in one line.
pub(super) fn listed(error: &ConfigError) -> (usize, String) {
    let errors: Vec<&Problem> = error.problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
    let lines: Vec<String> = errors.iter().take(MOST_PROBLEMS).map(|problem| one_line(problem)).collect();
    (errors.len(), lines.join("; "))
}
