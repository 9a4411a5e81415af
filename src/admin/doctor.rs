//! `POST /api/v1/doctor`: everything that an examination finds, made by the process itself with the code of the request
//! path. `doctor -c FILE` runs the same in the process of the command.

use std::path::PathBuf;
use std::sync::Arc;

use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::AdminState;
use super::answer::{self, Body};
use super::auth::Refused;
use crate::config::{self, Config};
use crate::control::examine::{self, Process};
use crate::proxy;
use crate::routing::service::Service;
use crate::routing::snapshot::Snapshot;
use crate::telemetry::process::CertificateExpiry;
use crate::upstream::finding::Finding;

/// Services that are examined at the same time.
const AT_ONCE: usize = 8;

/// Examinations and comparisons at the same time; more of them wait.
static PLACES: Semaphore = Semaphore::const_new(4);

/// What is to be examined.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// This service alone; without one, all of them.
    service: Option<String>,
    /// `process`: no service.
    only: Option<Only>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Only {
    Process,
}

/// A place among those whose requests go out at the same time.
pub(super) async fn place() -> tokio::sync::SemaphorePermit<'static> {
    PLACES.acquire().await.expect("the semaphore is never closed")
}

/// Examines what the question names. One service is examined without the process around it.
pub(super) async fn answer(state: &AdminState, question: Question) -> Result<Response<Body>, Refused> {
    let snapshot = state.live.snapshot();
    let chosen = match (&question.service, question.only) {
        (Some(name), None) => {
            let service = snapshot.service(name).ok_or_else(|| unknown(&snapshot, name))?;
            vec![service.clone()]
        }
        (None, None) => snapshot.services.clone(),
        (None, Some(Only::Process)) => Vec::new(),
        (Some(_), Some(Only::Process)) => {
            return Err((StatusCode::UNPROCESSABLE_ENTITY, "either a service, or only the process".to_owned()));
        }
    };
    let _place = place().await;
    let mut findings = Vec::new();
    if question.service.is_none() {
        findings.extend(process(state, &snapshot.config));
        findings.extend(state.keeper.examine().await);
    }
    let certificates = state.status.configuration().certificates;
    findings.extend(services(&chosen, &snapshot.config, &certificates, |_| {}).await);
    Ok(answer::json(StatusCode::OK, &json!({"checks": findings})))
}

/// The refusal of a service that does not exist.
pub(super) fn unknown(snapshot: &Snapshot, name: &str) -> Refused {
    (StatusCode::NOT_FOUND, snapshot.unknown(name))
}

fn process(state: &AdminState, config: &Config) -> Vec<Finding> {
    let configuration = state.status.configuration();
    examine::process(&Process {
        file: &PathBuf::from(&configuration.file),
        config,
        last_error: configuration.last_error,
        certificates: &configuration.certificates,
        forwarders: state.reporter().report().untrusted_forwarders,
        in_pod: examine::is_pod(&config::environment()),
    })
}

/// Examines services, a few at the same time; tells each that is done. The findings come in the order of the services.
pub async fn services(
    services: &[Arc<Service>],
    config: &Config,
    certificates: &[CertificateExpiry],
    done: impl Fn(&str),
) -> Vec<Finding> {
    let listen = Arc::new(config.listen.clone());
    let mut waiting = services.iter().enumerate();
    let mut running = JoinSet::new();
    let mut found: Vec<Vec<Finding>> = vec![Vec::new(); services.len()];
    loop {
        while running.len() < AT_ONCE
            && let Some((index, service)) = waiting.next()
        {
            let (service, listen) = (service.clone(), listen.clone());
            // Owned by the set, which ends it when it is dropped.
            running.spawn(async move { (index, proxy::examine::service(&service, &listen).await) });
        }
        match running.join_next().await {
            None => return found.into_iter().flatten().collect(),
            Some(Ok((index, findings))) => {
                let name = services[index].name();
                done(name);
                let expiry = examine::expiry(certificates, Some(name));
                found[index] = findings;
                found[index].extend(expiry.into_iter().map(|finding| finding.of_service(name)));
            }
            // A task that panicked has said so itself.
            Some(Err(_)) => {}
        }
    }
}
