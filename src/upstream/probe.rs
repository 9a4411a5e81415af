//! One probe of a cluster: a connection of its own, made as those of requests are and never seen by the pool, and one
//! request on it where the check has a path. One deadline covers all of it.

use std::error::Error;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};

use super::apart;
use super::body::OutBody;
use super::connect::{ConnectCause, Wanted};
use super::pool::Pool;
use crate::config::{self, Cluster, HostPattern};

const AGENT: &str = concat!("migration-proxy-health/", env!("CARGO_PKG_VERSION"));

/// The label of a wildcard host that probes ask for.
const LABEL: &str = "health";

/// As much of a body is read, so that a backend can end its answer in peace.
const BODY: usize = 64 * 1024;

/// What a probe asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    wanted: Wanted,
    /// The Host that requests get.
    host: Box<str>,
    /// The client's host, for targets that take their server name from it.
    client_host: Box<str>,
    /// `None`: connection and handshake are enough.
    path: Option<PathAndQuery>,
    expect: Vec<(u16, u16)>,
}

impl Question {
    /// What requests of a service would ask of a cluster.
    pub fn new(service: &config::Service, cluster: Cluster, wanted: Wanted) -> Self {
        let client_host = service.old_host.first().map(one_host).unwrap_or_default();
        let (options, host) = match cluster {
            Cluster::Old => (&service.old, client_host.as_str()),
            Cluster::New => (&service.new, service.new_host.as_str()),
        };
        let host = options.host_header.as_deref().unwrap_or(host).into();
        let path = &service.health_check.path;
        // Checked when the configuration was read.
        let path = if path.is_empty() { None } else { path.parse().ok() };
        let expect = service.health_check.expect.clone();
        Self { wanted, host, client_host: client_host.into(), path, expect }
    }

    fn request(&self, path: &PathAndQuery, is_http2: bool, is_tls: bool) -> http::Result<Request<OutBody>> {
        let request = Request::builder()
            .method(Method::GET)
            .header(USER_AGENT, HeaderValue::from_static(AGENT))
            .header(ACCEPT, HeaderValue::from_static("*/*"));
        let request = if is_http2 {
            let scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
            let target = Uri::builder().scheme(scheme).authority(&*self.host).path_and_query(path.clone()).build()?;
            request.version(Version::HTTP_2).uri(target)
        } else {
            request.uri(path.clone()).header(HOST, &*self.host).header(CONNECTION, HeaderValue::from_static("close"))
        };
        request.body(OutBody::Empty)
    }

    fn is_expected(&self, status: StatusCode) -> bool {
        self.expect.iter().any(|(low, high)| (*low..=*high).contains(&status.as_u16()))
    }
}

/// A host that the pattern covers.
pub fn one_host(pattern: &HostPattern) -> String {
    match pattern {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Wildcard(suffix) => format!("{LABEL}.{suffix}"),
    }
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectCause),
    /// The host or the path make no request.
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    /// The connection ended without an answer, or the answer makes no sense.
    #[error("no answer: {}", cause(.0))]
    Http(#[from] hyper::Error),
    /// An answer, but not one of those that are expected.
    #[error("status {}", .0.as_u16())]
    Status(StatusCode),
    /// Not done in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// hyper's word and what is behind it.
pub fn cause(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Asks once.
///
/// # Errors
///
/// What went wrong first.
pub async fn probe(pool: &Pool, question: &Question, timeout: Duration) -> Result<(), Fault> {
    let deadline = Instant::now() + timeout;
    let asked = tokio::time::timeout_at(deadline.into(), ask(pool, question, deadline)).await;
    asked.unwrap_or(Err(Fault::TimedOut(timeout)))
}

async fn ask(pool: &Pool, question: &Question, deadline: Instant) -> Result<(), Fault> {
    let connected = apart::connect(pool, question.wanted, &question.client_host, deadline).await;
    let mut connected = connected.map_err(|error| Fault::Connect(error.cause))?;
    let is_tls = apart::is_tls(&connected.stream);
    let Some(path) = &question.path else {
        let parted = if is_tls { apart::part(&mut connected.stream).await } else { Ok(()) };
        return parted.map_err(|error| ConnectCause::Tls(error).into());
    };
    let request = question.request(path, connected.is_http2, is_tls)?;
    let status = apart::ask(pool, connected, request, BODY, deadline).await?.head.status;
    if question.is_expected(status) { Ok(()) } else { Err(Fault::Status(status)) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Environment, source::Text};

    pub(in super::super) fn service(more: &str) -> config::Service {
        let text = format!(
            "services:\n  - name: a\n    old_host: ['*.old.example', b.old.example]\n    old_backend: 127.0.0.1:1\n    \
             new_host: a.new.example\n    {more}\n"
        );
        config::parse(&Text::new("test.yaml", text), &Environment::new()).unwrap().config.services.remove(0)
    }

    fn asked(more: &str, cluster: Cluster, is_http2: bool) -> (String, String) {
        let question = Question::new(&service(more), cluster, Wanted::Http1);
        let path = question.path.clone().expect("a path");
        let request = question.request(&path, is_http2, true).unwrap();
        let host = request.headers().get(HOST).map(|host| host.to_str().unwrap().to_owned());
        (host.unwrap_or_default(), request.uri().to_string())
    }

    #[test]
    fn the_host_is_the_one_that_requests_get() {
        const PATH: &str = "health_check: {path: '/healthz?full=1'}";
        let with = |more: &str| format!("{PATH}\n    {more}");
        let pair = |host: &str, target: &str| (host.to_owned(), target.to_owned());

        for (more, cluster, host) in [
            ("", Cluster::New, "a.new.example"),
            ("new: {host_header: inner.example}", Cluster::New, "inner.example"),
            ("", Cluster::Old, "health.old.example"),
            ("old: {host_header: fixed.example}", Cluster::Old, "fixed.example"),
        ] {
            assert_eq!(asked(&with(more), cluster, false), pair(host, "/healthz?full=1"), "{more}");
            let target = format!("https://{host}/healthz?full=1");
            assert_eq!(asked(&with(more), cluster, true), pair("", &target), "{more}");
        }
        let question = Question::new(&service("old: {host_header: fixed.example}"), Cluster::Old, Wanted::Http1);
        assert_eq!(&*question.client_host, "health.old.example", "which is what TLS asks for");
    }

    #[test]
    fn without_a_path_nothing_is_asked() {
        assert_eq!(Question::new(&service(""), Cluster::New, Wanted::Http1).path, None);
    }

    #[test]
    fn statuses_are_compared_with_what_is_expected() {
        for (expect, good, bad) in
            [("200-399", &[200, 204, 301, 399][..], &[199, 400, 503][..]), ("'200,204'", &[200, 204], &[201, 301])]
        {
            let service = service(&format!("health_check: {{path: /, expect: {expect}}}"));
            let question = Question::new(&service, Cluster::New, Wanted::Http1);
            let is_expected = |status: &u16| question.is_expected(StatusCode::from_u16(*status).unwrap());
            assert!(good.iter().all(is_expected), "{expect}");
            assert!(!bad.iter().any(is_expected), "{expect}");
        }
    }
}
