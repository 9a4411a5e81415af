//! The writing half of `/api/v1`: shares, switches, safe mode and freeze. Each request is authorised first, then read
//! within bounds, then handed to the [`Keeper`].
//!
//! [`Keeper`]: crate::control::keeper::Keeper

use std::net::IpAddr;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::{self, Body};
use super::auth::{self, Refused};
use super::{AdminState, configuration, doctor, query, verify};
use crate::config::{self, Percent};
use crate::control::change::{Change, Migration, Refusal, Share};
use crate::control::keeper::{Applied, ChangeError};
use crate::telemetry::audit::Actor;

/// A larger body is no change.
pub(super) const LARGEST_BODY: usize = 64 << 10;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest reason, in bytes.
const LONGEST_REASON: usize = 500;

/// Who the caller says to be.
const CLAIMED: &str = "x-claimed-by";

/// What a path changes.
enum Action {
    Migration(String),
    Confirm(String),
    SafeMode(Option<String>),
    Freeze,
}

/// What a path makes the proxy ask the clusters: nothing is changed, but requests are sent.
enum Errand {
    Doctor,
    Verify(String),
}

/// `PUT /api/v1/services/NAME/migration`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MigrationBody {
    percentage: Option<Value>,
    enabled: Option<bool>,
    methods: Option<Vec<String>>,
    reason: Option<String>,
    #[serde(rename = "for")]
    clock: Option<Value>,
    close_streams: Option<Value>,
    #[serde(default)]
    only_down: bool,
}

/// `PUT` of safe-mode and freeze.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchBody {
    on: bool,
    reason: Option<String>,
    service: Option<String>,
    close_streams: Option<Value>,
}

/// `POST` of confirm.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmBody {
    reason: Option<String>,
}

/// Answers a request that is no GET. Whoever may not write learns nothing else.
pub(super) async fn answer(state: &AdminState, peer: IpAddr, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let config = &state.live.snapshot().config;
    let actor = match auth::actor(config, peer, &head.headers) {
        Ok(actor) => actor,
        Err((status, text)) => return refused(status, &text),
    };
    match perform(state, &actor, &head, body).await {
        Ok(response) => response,
        Err((status, text)) => answer::error(status, &text),
    }
}

async fn perform(state: &AdminState, actor: &Actor, head: &Parts, body: Incoming) -> Result<Response<Body>, Refused> {
    match head.uri.path() {
        "/api/v1/config/rollback" => return configuration::roll_back(state, actor, head, body).await,
        "/api/v1/check" => return configuration::check(state, head, body).await,
        _ => {}
    }
    if let Some(errand) = Errand::of(&head.method, head.uri.path())? {
        return errand.run(state, actor, head, body).await;
    }
    let Some(action) = Action::of(&head.method, head.uri.path())? else {
        return Ok(answer::error(StatusCode::NOT_FOUND, "nothing here that can be changed"));
    };
    auth::check_type(&head.headers, "application/json")?;
    let body = read(body, LARGEST_BODY).await?;
    let (change, reason) = action.change(&body)?;
    check_reason(reason.as_deref())?;
    allow_here(state, head)?;
    let claimed = claimed(&head.headers).map(str::to_owned);
    match state.keeper.submit(change.clone(), actor.clone(), claimed, reason).await {
        Ok(applied) => Ok(report(state, &change, &applied)),
        Err(error) => Ok(explain(&error)),
    }
}

impl Action {
    /// What a path changes; a path that has another method is an error.
    fn of(method: &Method, path: &str) -> Result<Option<Self>, Refused> {
        let Some(rest) = path.strip_prefix("/api/v1/") else { return Ok(None) };
        let parts: Vec<&str> = rest.split('/').collect();
        let (action, wanted) = match parts.as_slice() {
            ["services", service, "migration"] => (Self::Migration(name_in(service)?), Method::PUT),
            ["services", service, "confirm"] => (Self::Confirm(name_in(service)?), Method::POST),
            ["services", service, "safe-mode"] => (Self::SafeMode(Some(name_in(service)?)), Method::PUT),
            ["safe-mode"] => (Self::SafeMode(None), Method::PUT),
            ["freeze"] => (Self::Freeze, Method::PUT),
            _ => return Ok(None),
        };
        if *method == wanted {
            return Ok(Some(action));
        }
        Err((StatusCode::METHOD_NOT_ALLOWED, format!("only {wanted} here")))
    }

    fn change(self, body: &[u8]) -> Result<(Change, Option<String>), Refused> {
        Ok(match self {
            Self::Migration(services) => {
                let body: MigrationBody = parsed(body)?;
                let migration = Migration {
                    services,
                    percentage: body.percentage.as_ref().map(share).transpose().map_err(bad_value)?,
                    enabled: body.enabled,
                    only_down: body.only_down,
                    methods: body.methods.map(|m| methods(&m)).transpose().map_err(bad_value)?,
                    clock: duration(body.clock.as_ref(), "for")?,
                    close_streams: duration(body.close_streams.as_ref(), "close_streams")?,
                };
                if migration.percentage.is_none() && migration.enabled.is_none() && migration.methods.is_none() {
                    return Err(bad_value("name a percentage, enabled or methods".to_owned()));
                }
                (Change::Migration(migration), body.reason)
            }
            Self::Confirm(services) => (Change::Confirm(services), parsed::<ConfirmBody>(body)?.reason),
            Self::SafeMode(service) => {
                let body: SwitchBody = parsed(body)?;
                let close_streams = duration(body.close_streams.as_ref(), "close_streams")?;
                (Change::SafeMode { services: service.or(body.service), on: body.on, close_streams }, body.reason)
            }
            Self::Freeze => {
                let body: SwitchBody = parsed(body)?;
                (Change::Freeze { services: body.service, on: body.on }, body.reason)
            }
        })
    }
}

impl Errand {
    fn of(method: &Method, path: &str) -> Result<Option<Self>, Refused> {
        let Some(rest) = path.strip_prefix("/api/v1/") else { return Ok(None) };
        let parts: Vec<&str> = rest.split('/').collect();
        let errand = match parts.as_slice() {
            ["doctor"] => Self::Doctor,
            ["services", service, "verify"] => Self::Verify(name_in(service)?),
            _ => return Ok(None),
        };
        if *method == Method::POST {
            return Ok(Some(errand));
        }
        Err((StatusCode::METHOD_NOT_ALLOWED, "only POST here".to_owned()))
    }

    async fn run(
        self,
        state: &AdminState,
        actor: &Actor,
        head: &Parts,
        body: Incoming,
    ) -> Result<Response<Body>, Refused> {
        auth::check_type(&head.headers, "application/json")?;
        let body = read(body, LARGEST_BODY).await?;
        let by = actor.as_str();
        match self {
            Self::Doctor => {
                tracing::info!(by, "examines the clusters");
                Box::pin(doctor::answer(state, parsed(&body)?)).await
            }
            Self::Verify(service) => {
                tracing::info!(by, service, "compares the clusters");
                Box::pin(verify::answer(state, &service, parsed(&body)?)).await
            }
        }
    }
}

/// A name as a part of a path.
fn name_in(part: &str) -> Result<String, Refused> {
    query::decoded(part).ok_or_else(|| (StatusCode::UNPROCESSABLE_ENTITY, "the name is no UTF-8".to_owned()))
}

/// With a state of its own, a replica among others would disagree with them.
pub(super) fn allow_here(state: &AdminState, head: &Parts) -> Result<(), Refused> {
    let mut wanted = query::pairs(head.uri.query().unwrap_or_default()).flatten();
    if !state.keeps_alone || wanted.any(|(name, value)| name == "this_replica" && value == "true") {
        return Ok(());
    }
    let text = "the state of this replica is a file of its own, other replicas would not follow: \
                repeat with --this-replica for each of them, or let state.backend be kubernetes";
    Err((StatusCode::CONFLICT, text.to_owned()))
}

/// A body of at most so many bytes.
pub(super) async fn read(body: Incoming, most: usize) -> Result<Vec<u8>, Refused> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect());
    match body.await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {} KiB", most >> 10)))
        }
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the body is malformed".to_owned())),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned())),
    }
}

/// A body as JSON of this shape.
pub(super) fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refused> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, format!("no JSON: {error}")))?;
    serde_json::from_value(value).map_err(|error| bad_value(error.to_string()))
}

fn bad_value(text: String) -> Refused {
    (StatusCode::UNPROCESSABLE_ENTITY, text)
}

/// 20, "12.5", "+10" or "-5".
fn share(value: &Value) -> Result<Share, String> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => {
            let points = |text: &str| text.parse().map(|share: Percent| i32::from(share.basis_points()));
            return match (text.strip_prefix('+'), text.strip_prefix('-')) {
                (Some(more), _) => points(more).map(Share::By),
                (_, Some(less)) => points(less).map(|points| Share::By(-points)),
                _ => text.parse().map(Share::To),
            };
        }
        _ => return Err("percentage: a number, or a text such as \"+10\"".to_owned()),
    };
    text.parse().map(Share::To)
}

fn methods(names: &[String]) -> Result<Vec<Method>, String> {
    names.iter().map(|name| config::method(name)).collect()
}

fn duration(value: Option<&Value>, key: &str) -> Result<Option<Duration>, Refused> {
    let duration = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => config::duration(text),
        Some(Value::Number(number)) => config::duration(&number.to_string()),
        Some(_) => Err("a duration such as \"30m\"".to_owned()),
    };
    duration.map(Some).map_err(|why| bad_value(format!("{key}: {why}")))
}

/// Whether a reason is short enough.
pub(super) fn check_reason(reason: Option<&str>) -> Result<(), Refused> {
    match reason {
        Some(reason) if reason.len() > LONGEST_REASON => {
            Err(bad_value(format!("a reason has at most {LONGEST_REASON} bytes")))
        }
        _ => Ok(()),
    }
}

/// Who the caller says to be.
pub(super) fn claimed(headers: &HeaderMap) -> Option<&str> {
    headers.get(CLAIMED)?.to_str().ok().filter(|claimed| !claimed.is_empty() && claimed.len() <= 100)
}

/// The services as `/status` shows them, and what changed.
fn report(state: &AdminState, change: &Change, applied: &Applied) -> Response<Body> {
    let report = state.reporter().report();
    let touched = |name: &str| applied.entries.iter().any(|entry| entry.service.as_deref() == Some(name));
    let named = match change {
        Change::Migration(Migration { services, .. }) | Change::Confirm(services) => Some(services),
        Change::SafeMode { services, .. } | Change::Freeze { services, .. } => services.as_ref(),
    };
    let one = named.and_then(|name| report.services.iter().find(|service| service.name == *name));
    let mut answer = match one {
        Some(service) => json!(service),
        None => {
            let services: Vec<_> = report.services.iter().filter(|service| touched(&service.name)).collect();
            json!({"safe_mode": report.safe_mode, "services": services})
        }
    };
    if let Value::Object(fields) = &mut answer {
        fields.insert("changes".to_owned(), json!(applied.entries));
        fields.insert("unstored".to_owned(), json!(applied.unstored));
    }
    answer::json(StatusCode::OK, &answer)
}

fn explain(error: &ChangeError) -> Response<Body> {
    let text = error.to_string();
    match error {
        ChangeError::Refused(Refusal::Unknown(_)) => answer::error(StatusCode::NOT_FOUND, &text),
        ChangeError::Refused(Refusal::Invalid(_)) => answer::error(StatusCode::UNPROCESSABLE_ENTITY, &text),
        ChangeError::Refused(Refusal::Policy(_)) => {
            answer::json(StatusCode::CONFLICT, &json!({"error": text, "policy": true}))
        }
        ChangeError::Refused(Refusal::Overtaken(_)) => answer::error(StatusCode::CONFLICT, &text),
        ChangeError::Unstored(_) => answer::error(StatusCode::SERVICE_UNAVAILABLE, &text),
    }
}

fn refused(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = answer::error(status, text);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    }
    response
}
