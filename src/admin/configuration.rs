//! What is asked about whole configurations: `POST /api/v1/config/rollback` serves an earlier one, `POST /api/v1/check`
//! tells what a file would change, `GET /api/v1/history` what changed before.

use std::time::Instant;

use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answer::{self, Body};
use super::auth::{self, Refused};
use super::recent::Wanted;
use super::{AdminState, api};
use crate::config::{Text, source};
use crate::control::candidate::Candidate;
use crate::control::history::{self, Author, Entry, NotFound, Stored};
use crate::control::preview::Preview;
use crate::control::rollback::RollbackError;
use crate::telemetry::audit::Actor;
use crate::telemetry::difference::Reach;
use crate::telemetry::recent::KEPT;
use crate::telemetry::text::rfc3339_time;

/// Entries of the history that one answer has unless the query says otherwise.
const SOME_ENTRIES: usize = 50;

/// `POST /api/v1/config/rollback`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackBody {
    hash: String,
    reason: Option<String>,
}

/// One entry of `history`, with the commands that go back.
#[derive(Serialize)]
struct ShownEntry {
    #[serde(flatten)]
    entry: Entry,
    undo: Vec<String>,
}

/// Serves an earlier configuration.
pub(super) async fn roll_back(
    state: &AdminState,
    actor: &Actor,
    head: &Parts,
    body: Incoming,
) -> Result<Response<Body>, Refused> {
    only_post(head)?;
    auth::check_type(&head.headers, "application/json")?;
    let RollbackBody { hash, reason } = api::parsed(&api::read(body, api::LARGEST_BODY).await?)?;
    api::check_reason(reason.as_deref())?;
    if hash.is_empty() {
        return Err((StatusCode::UNPROCESSABLE_ENTITY, "hash: the beginning of one that history shows".to_owned()));
    }
    api::allow_here(state, head)?;
    let claimed = api::claimed(&head.headers).map(str::to_owned);
    let author = Author { actor: actor.clone(), claimed, reason };
    let rolled_back = state.rollbacks.roll_back(hash, author).await.map_err(|error| {
        let status = match &error {
            RollbackError::NotFound(NotFound::Unknown(_)) => StatusCode::NOT_FOUND,
            RollbackError::NotFound(NotFound::Ambiguous(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            RollbackError::Unusable(_) => StatusCode::GONE,
            RollbackError::Ending => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, error.to_string())
    })?;
    let history = state.history.clone();
    let stored = tokio::task::spawn_blocking(move || history.write()).await;
    let stored = stored.unwrap_or_else(|error| Err(error.to_string()));
    let unstored = state.keeper.tell_others().await.and(stored).err();
    let report = state.reporter().report();
    Ok(answer::json(
        StatusCode::OK,
        &json!({
            "config": report.config,
            "before": rolled_back.before,
            "changes": rolled_back.changes,
            "unstored": unstored,
        }),
    ))
}

/// Tells what a file would change.
pub(super) async fn check(state: &AdminState, head: &Parts, body: Incoming) -> Result<Response<Body>, Refused> {
    only_post(head)?;
    auth::check_type(&head.headers, "application/yaml")?;
    let most = usize::try_from(source::MAX_BYTES).unwrap_or(usize::MAX);
    let body = String::from_utf8(api::read(body, most).await?)
        .map_err(|_| (StatusCode::UNPROCESSABLE_ENTITY, "the file is not UTF-8".to_owned()))?;
    let snapshot = state.live.snapshot();
    let recorded = state.telemetry.recent.newest(None, KEPT);
    let since = recorded.last().map(|oldest| time_of(oldest.at));
    let (keeper, environment) = (state.keeper.clone(), state.environment.clone());
    // A large file takes a while, and the port goes on answering.
    let work = move || match Candidate::decode(Text::new("the file", body), &environment) {
        Ok(candidate) => {
            let preview = Preview::of(&snapshot, candidate.config(), &keeper, &recorded);
            answer::json(StatusCode::OK, &shown(&candidate, &preview, since.as_deref()))
        }
        Err(error) => {
            let answer = json!({"error": error.summary(), "problems": error.problems});
            answer::json(StatusCode::UNPROCESSABLE_ENTITY, &answer)
        }
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn shown(candidate: &Candidate, preview: &Preview, since: Option<&str>) -> Value {
    let lost: Vec<Value> = preview
        .lost_hosts
        .iter()
        .map(|lost| json!({"host": lost.host, "service": lost.service, "last_request": lost.age.as_secs()}))
        .collect();
    let mut traffic = json!(preview.traffic);
    if let Value::Object(fields) = &mut traffic {
        fields.insert("since".to_owned(), json!(since));
    }
    json!({
        "hash": candidate.text().hash(),
        "problems": candidate.warnings(),
        "changes": preview.changes,
        "lost_hosts": lost,
        "traffic": traffic,
    })
}

/// What changed, the newest first.
pub(super) fn history(state: &AdminState, query: &str) -> Response<Body> {
    let AdminState { history, live, keeper, .. } = state;
    let snapshot = live.snapshot();
    let wanted = match Wanted::read(query, SOME_ENTRIES, history::MOST_ENTRIES) {
        Ok(wanted) => wanted,
        Err(text) => return answer::error(StatusCode::UNPROCESSABLE_ENTITY, &text),
    };
    let entries = history.entries(wanted.service.as_deref(), wanted.limit);
    // What concerns everything is in everybody's history, also in that of a name that never was.
    let is_of = |entry: &Entry, name: &str| entry.changes.iter().any(|change| change.service.as_deref() == Some(name));
    if let Some(name) = &wanted.service
        && snapshot.service(name).is_none()
        && !entries.iter().any(|entry| is_of(entry, name))
    {
        return answer::error(StatusCode::NOT_FOUND, &snapshot.unknown(name));
    }
    let files = history.files();
    let reach = |name: &str| {
        let service = snapshot.service(name)?;
        Some(Reach { at: service.lasting.weight.effective(), max_step: service.config.migration.max_step })
    };
    let shown = |entry: Entry| ShownEntry { undo: entry.undo(&files, reach), entry };
    let entries: Vec<_> = entries.into_iter().map(shown).collect();
    let configs: Vec<Value> = files.iter().rev().map(config).collect();
    let is_wanted = |name: &str| wanted.service.as_deref().is_none_or(|wanted| wanted == name);
    let pending: Vec<Value> = snapshot
        .services
        .iter()
        .map(|service| service.name())
        .filter(|name| is_wanted(name))
        .filter_map(|name| {
            let confirm_by = rfc3339_time(keeper.confirm_by(name)?);
            Some(json!({"service": name, "back_to": keeper.back_to(name), "confirm_by": confirm_by}))
        })
        .collect();
    let pinned = history.pinned();
    answer::json(StatusCode::OK, &json!({"history": entries, "configs": configs, "pinned": pinned, "pending": pending}))
}

fn config(stored: &Stored) -> Value {
    let accepted = Timestamp::try_from(stored.accepted).ok().map(rfc3339_time);
    json!({"hash": stored.hash, "accepted": accepted})
}

fn only_post(head: &Parts) -> Result<(), Refused> {
    if head.method == Method::POST {
        return Ok(());
    }
    Err((StatusCode::METHOD_NOT_ALLOWED, "only POST here".to_owned()))
}

fn time_of(at: Instant) -> String {
    super::recent::Moment::now().time(at)
}
