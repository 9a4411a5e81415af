//! One probe of a cluster: a connection of its own, made as those of requests are and never seen by the pool, and one
//! request on it where the check has a path. One deadline covers all of it.

use std::error::Error;
use std::pin::pin;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::body::OutBody;
use super::connect::{ConnectCause, Connected, Wanted};
use super::pool::Pool;
use crate::config::{self, Cluster, HostPattern};
use crate::net::stream::Stream;
use crate::tls::verify::refuses_certificate;

const AGENT: &str = concat!("migration-proxy-health/", env!("CARGO_PKG_VERSION"));

/// The label of a wildcard host that probes ask for.
const LABEL: &str = "health";

/// Addresses that one probe tries: requests try others too when one refuses.
const ADDRESSES: usize = 4;

/// As much of a body is read, so that a backend can end its answer in peace.
const BODY: usize = 64 * 1024;

/// How long a backend may take to say goodbye after a handshake, and in how many pieces.
const GOODBYE: Duration = Duration::from_secs(1);
const GOODBYE_READS: usize = 16;

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
fn one_host(pattern: &HostPattern) -> String {
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
fn cause(error: &hyper::Error) -> String {
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
    let connected = connection(pool, question, deadline).await?;
    let Some(path) = &question.path else { return part(connected.stream).await };
    let is_tls = matches!(connected.stream, Stream::Client(_));
    let request = question.request(path, connected.is_http2, is_tls)?;
    let status = answer(pool, connected, request, deadline).await?;
    if question.is_expected(status) { Ok(()) } else { Err(Fault::Status(status)) }
}

async fn connection(pool: &Pool, question: &Question, deadline: Instant) -> Result<Connected, Fault> {
    let mut tries = 1;
    loop {
        match pool.connect_apart(question.wanted, &question.client_host, deadline).await {
            Err(error) if error.has_alternative && tries < ADDRESSES => tries += 1,
            other => return other.map_err(|error| error.cause.into()),
        }
    }
}

/// Ends a connection on which nothing is asked. A TLS 1.3 server judges our certificate when the handshake is already over
/// for us, so its refusal comes only now.
async fn part(mut stream: Stream) -> Result<(), Fault> {
    if !matches!(stream, Stream::Client(_)) {
        return Ok(());
    }
    let goodbye = async {
        stream.shutdown().await?;
        let mut buffer = [0; 1024];
        for _ in 0..GOODBYE_READS {
            if stream.read(&mut buffer).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    match tokio::time::timeout(GOODBYE, goodbye).await {
        Ok(Err(error)) if refuses_certificate(&error) => Err(ConnectCause::Tls(error).into()),
        // Anything else is a matter of manners.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The status; the body is read to a bound, and what becomes of it does not matter.
async fn answer(
    pool: &Pool,
    connected: Connected,
    request: Request<OutBody>,
    deadline: Instant,
) -> hyper::Result<StatusCode> {
    let Connected { stream, is_http2, .. } = connected;
    let io = TokioIo::new(stream);
    if is_http2 {
        let list = u32::try_from(pool.response_head()).unwrap_or(u32::MAX);
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(list)
            .keep_alive_interval(Duration::from_secs(30))
            .handshake(io)
            .await?;
        driven(connection, async { Ok(head(sender.send_request(request).await?, deadline).await) }).await
    } else {
        let mut builder = http1::Builder::new();
        builder.max_header_size(pool.response_head()).max_headers(super::pool::RESPONSE_FIELDS);
        let (mut sender, connection) = builder.handshake(io).await?;
        driven(connection, async { Ok(head(sender.send_request(request).await?, deadline).await) }).await
    }
}

async fn head(response: Response<Incoming>, deadline: Instant) -> StatusCode {
    let status = response.status();
    let mut body = response.into_body();
    let read = async {
        let mut left = BODY;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // A little before the end, so that a slow body does not take the status with it.
    let slack = deadline.saturating_duration_since(Instant::now()) / 10;
    let _ = tokio::time::timeout_at((deadline - slack).into(), read).await;
    status
}

/// Waits for an answer while its connection is driven. One that ends with its connection is still an answer.
async fn driven<T>(connection: impl Future, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        _ = connection => {}
    }
    answer.await
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
