//! Stands in for an API server of Kubernetes, for the requests that the product makes on one ConfigMap: get, list, watch,
//! create and merge patch, with its conflicts and refusals, over TLS with HTTP/2 and HTTP/1.1. What it answers is what a
//! real one (1.36) answered to such requests, kept in `tests/golden/kubernetes`, with other names; what a watch tells
//! follows the API's documentation. It is no proof of how a real one behaves under load or during its own upgrades.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::certs::Authority;

/// The namespace of every pod.
pub const NAMESPACE: &str = "team";
const TOKEN: &str = "token-of-the-pod";

/// What a real one answered: status, headers and a body with the names of its own objects.
macro_rules! recorded {
    ($($name:ident: $file:literal,)+) => {
        $(const $name: &str = include_str!(concat!("../../golden/kubernetes/", $file, ".http"));)+
    };
}

recorded! {
    UNAUTHORIZED: "get-401-bad-token",
    FORBIDDEN: "get-403-other",
    NOT_FOUND: "get-404-admin",
    MALFORMED: "patch-400-malformed",
    STALE: "patch-409-stale",
    UNSUPPORTED: "patch-415",
    IMMUTABLE: "patch-422-immutable",
    TOO_LARGE: "patch-422-too-large",
}

/// More than this fits into no ConfigMap.
const LARGEST: usize = 1 << 20;

/// An API server with the ConfigMaps of one namespace.
pub struct ApiServer {
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    cluster: Arc<Mutex<Cluster>>,
    directory: TempDir,
    _authority: Authority,
    running: Option<Running>,
}

struct Running {
    cancel: CancellationToken,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Cluster {
    revision: u64,
    maps: BTreeMap<String, Value>,
    /// What a watch can still tell.
    history: Vec<(u64, &'static str, Value)>,
    /// Older than this has been forgotten.
    compacted: u64,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    forbidden: BTreeSet<&'static str>,
    /// Requests are read and never answered.
    is_silent: bool,
    is_contended: bool,
    conflicts: usize,
}

impl ApiServer {
    /// One with an empty ConfigMap of this name, speaking HTTP/2.
    pub fn with_map(name: &str) -> Self {
        Self::speaking(&["h2", "http/1.1"], name)
    }

    /// The same, speaking these protocols.
    pub fn speaking(alpn: &[&str], name: &str) -> Self {
        let authority = Authority::new("kubernetes");
        let tls = authority.server(&["127.0.0.1"]).server_config(alpn, None);
        let directory = TempDir::new().unwrap();
        let credential = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        credential("token", TOKEN);
        credential("namespace", NAMESPACE);
        fs::copy(authority.file(), directory.path().join("ca.crt")).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, super::cli::free_port()));
        let cluster = Arc::new(Mutex::new(Cluster { revision: 350, ..Cluster::default() }));
        let mut server = Self { address, tls, cluster, directory, _authority: authority, running: None };
        server.lock().create(name).unwrap();
        server.start();
        server
    }

    /// The variables of a pod's environment that lead here.
    pub fn environment(&self) -> [(String, String); 3] {
        [
            ("KUBERNETES_SERVICE_HOST", self.address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", self.address.port().to_string()),
            ("MIGRATION_PROXY_SERVICE_ACCOUNT", self.directory.path().display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Another token for pods, which the kubelet has not written yet.
    pub fn rotate_token(&self) {
        fs::write(self.directory.path().join("token"), "another").unwrap();
    }

    /// The token that is accepted, again.
    pub fn restore_token(&self) {
        fs::write(self.directory.path().join("token"), TOKEN).unwrap();
    }

    /// Listens, again.
    pub fn start(&mut self) {
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let cancel = CancellationToken::new();
        let (stop, tls, cluster) = (cancel.clone(), self.tls.clone(), self.cluster.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = serve(&listener, &tls, &cluster) => {}
                }
            });
            // Connections are cut here.
        });
        self.running = Some(Running { cancel, thread });
    }

    /// Goes away: the port is closed, every connection cut.
    pub fn stop(&mut self) {
        if let Some(Running { cancel, thread }) = self.running.take() {
            cancel.cancel();
            thread.join().unwrap();
        }
        self.lock().watches.clear();
    }

    /// Reads requests and answers none, or answers again.
    pub fn be_silent(&self, is_silent: bool) {
        self.lock().is_silent = is_silent;
    }

    /// Says of every patch that another one was faster, or no longer.
    pub fn be_contended(&self, is_contended: bool) {
        self.lock().is_contended = is_contended;
    }

    /// Ends every watch, as the server does now and then.
    pub fn end_watches(&self) {
        self.lock().watches.clear();
    }

    /// How many watch now.
    pub fn watches(&self) -> usize {
        let mut cluster = self.lock();
        cluster.watches.retain(|(_, watch)| !watch.is_closed());
        cluster.watches.len()
    }

    /// Forgets what has changed so far: a watch from before is 410 Gone.
    pub fn compact(&self) {
        let mut cluster = self.lock();
        cluster.compacted = cluster.revision;
        cluster.history.clear();
    }

    /// Sends a bookmark to everybody who watches.
    pub fn bookmark(&self) {
        let cluster = self.lock();
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1",
                            "metadata": {"resourceVersion": cluster.revision.to_string(), "creationTimestamp": null}});
        cluster.tell("BOOKMARK", &object, |_| true);
    }

    /// Refuses these verbs: `get`, `list`, `watch`, `create`, `patch`.
    pub fn forbid(&self, verbs: &[&'static str]) {
        self.lock().forbidden = verbs.iter().copied().collect();
    }

    /// How often somebody was too late.
    pub fn conflicts(&self) -> usize {
        self.lock().conflicts
    }

    /// One entry of `data` of a ConfigMap.
    pub fn data(&self, name: &str, key: &str) -> Option<String> {
        self.lock().maps.get(name)?["data"][key].as_str().map(str::to_owned)
    }

    /// Sets fields of a ConfigMap by hand, as `kubectl edit` does.
    pub fn edit(&self, name: &str, patch: &Value) {
        self.lock().patch(name, patch).unwrap();
    }

    /// Removes a ConfigMap.
    pub fn delete(&self, name: &str) {
        let mut cluster = self.lock();
        let mut map = cluster.maps.remove(name).unwrap();
        cluster.revision += 1;
        map["metadata"]["resourceVersion"] = json!(cluster.revision.to_string());
        cluster.changed("DELETED", map);
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A refusal as it was recorded.
type Refused = (StatusCode, Value);

/// A recorded answer with our names in place of those that were recorded.
fn refusal(recorded: &str, verb: &str, name: &str) -> Refused {
    let (head, body) = recorded.split_once("\n\n").or_else(|| recorded.split_once("\r\n\r\n")).expect("a head");
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let mut body: Value = serde_json::from_str(body).unwrap();
    let mut message = body["message"].as_str().unwrap().to_owned();
    for (theirs, ours) in [
        ("kube-root-ca.crt", name),
        ("migration-proxy-config", name),
        ("no-such", name),
        ("aibang-1111111111-bbdm", NAMESPACE),
        ("cannot get", &format!("cannot {verb}")),
    ] {
        message = message.replace(theirs, ours);
    }
    body["message"] = json!(message);
    if body["details"]["name"].is_string() {
        body["details"]["name"] = json!(name);
    }
    (status, body)
}

impl Cluster {
    fn create(&mut self, name: &str) -> Result<Value, Refused> {
        self.revision += 1;
        let map = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "uid": format!("7c2d7d7b-32c2-4681-a873-{:012}", self.revision),
                "resourceVersion": self.revision.to_string(), "creationTimestamp": "2026-11-20T13:42:24Z",
            },
        });
        self.maps.insert(name.to_owned(), map.clone());
        self.changed("ADDED", map.clone());
        Ok(map)
    }

    /// RFC 7396, with the version check of the API server.
    fn patch(&mut self, name: &str, patch: &Value) -> Result<Value, Refused> {
        let Some(map) = self.maps.get(name) else { return Err(refusal(NOT_FOUND, "patch", name)) };
        let known = patch["metadata"]["resourceVersion"].as_str();
        if self.is_contended || known.is_some_and(|known| map["metadata"]["resourceVersion"] != known) {
            self.conflicts += 1;
            return Err(refusal(STALE, "patch", name));
        }
        let mut next = map.clone();
        merge(&mut next, patch);
        next["metadata"]["resourceVersion"] = map["metadata"]["resourceVersion"].clone();
        if next == *map {
            return Ok(next);
        }
        if map["immutable"] == true {
            return Err(refusal(IMMUTABLE, "patch", name));
        }
        if next["data"].to_string().len() > LARGEST {
            return Err(refusal(TOO_LARGE, "patch", name));
        }
        self.revision += 1;
        next["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.maps.insert(name.to_owned(), next.clone());
        self.changed("MODIFIED", next.clone());
        Ok(next)
    }

    fn changed(&mut self, kind: &'static str, map: Value) {
        self.tell(kind, &map, |name| map["metadata"]["name"] == name);
        self.history.push((self.revision, kind, map));
    }

    fn tell(&self, kind: &str, object: &Value, whom: impl Fn(&str) -> bool) {
        for (_, watch) in self.watches.iter().filter(|(name, _)| whom(name)) {
            let _ = watch.send(line(kind, object));
        }
    }

    fn watch(&mut self, name: &str, since: u64) -> Lines {
        let (sender, receiver) = mpsc::unbounded_channel();
        if since < self.compacted {
            let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                              "message": format!("too old resource version: {since} ({})", self.compacted),
                              "reason": "Expired", "code": 410});
            let _ = sender.send(line("ERROR", &gone));
            return Lines(receiver);
        }
        for (_, kind, map) in self.history.iter().filter(|(revision, ..)| *revision > since) {
            if map["metadata"]["name"] == name {
                let _ = sender.send(line(kind, map));
            }
        }
        self.watches.push((name.to_owned(), sender));
        Lines(receiver)
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

async fn serve(listener: &TcpListener, tls: &Arc<ServerConfig>, cluster: &Arc<Mutex<Cluster>>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        socket.set_nodelay(true).unwrap();
        let (acceptor, cluster) = (TlsAcceptor::from(tls.clone()), cluster.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(socket).await else { return };
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(|request| answer(request, cluster.clone()));
            let _ = if is_http2 {
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
            } else {
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            };
        });
    }
}

async fn answer(request: Request<Incoming>, cluster: Arc<Mutex<Cluster>>) -> Result<Response<Lines>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if cluster.lock().unwrap().is_silent {
        std::future::pending::<()>().await;
    }
    if head.headers.get("authorization").is_none_or(|token| token != &format!("Bearer {TOKEN}")) {
        return Ok(refused(refusal(UNAUTHORIZED, "", "")));
    }
    let query: BTreeMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=")))
        .collect();
    let rest = head.uri.path().strip_prefix(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps"));
    let Some(rest) = rest else { return Ok(refused(refusal(FORBIDDEN, "get", head.uri.path()))) };
    let selected = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    let name = rest.strip_prefix('/').or(selected).unwrap_or_default().to_owned();
    let is_watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
    let verb = match (&head.method, rest.is_empty()) {
        (&Method::GET, false) => "get",
        (&Method::GET, true) if is_watch => "watch",
        (&Method::GET, true) => "list",
        (&Method::POST, true) => "create",
        (&Method::PATCH, false) => "patch",
        _ => "delete",
    };
    let mut cluster = cluster.lock().unwrap();
    if cluster.forbidden.contains(verb) || verb == "delete" {
        return Ok(refused(refusal(FORBIDDEN, verb, &name)));
    }
    let outcome = match verb {
        "get" => cluster.maps.get(&name).cloned().ok_or_else(|| refusal(NOT_FOUND, verb, &name)),
        "list" => {
            let items: Vec<&Value> = cluster.maps.get(&name).into_iter().collect();
            Ok(json!({"kind": "ConfigMapList", "apiVersion": "v1", "items": items,
                      "metadata": {"resourceVersion": cluster.revision.to_string()}}))
        }
        "watch" => {
            let since = query.get("resourceVersion").and_then(|since| since.parse().ok()).unwrap_or(0);
            return Ok(reply(StatusCode::OK, cluster.watch(&name, since)));
        }
        "create" => {
            let map: Value = serde_json::from_slice(&body).unwrap_or_default();
            let name = map["metadata"]["name"].as_str().unwrap_or_default();
            if cluster.maps.contains_key(name) { Err(refusal(STALE, verb, name)) } else { cluster.create(name) }
        }
        _ => match head.headers.get("content-type").map(|kind| kind.as_bytes()) {
            Some(b"application/merge-patch+json") => match serde_json::from_slice(&body) {
                Ok(patch) => cluster.patch(&name, &patch),
                Err(_) => Err(refusal(MALFORMED, verb, &name)),
            },
            _ => Err(refusal(UNSUPPORTED, verb, &name)),
        },
    };
    drop(cluster);
    Ok(match outcome {
        Ok(object) => reply(StatusCode::OK, Lines::whole(&object)),
        Err(refusal) => refused(refusal),
    })
}

fn refused((status, body): Refused) -> Response<Lines> {
    reply(status, Lines::whole(&body))
}

fn reply(status: StatusCode, body: Lines) -> Response<Lines> {
    let reply = Response::builder().status(status).header("content-type", "application/json");
    reply.header("cache-control", "no-cache, private").body(body).unwrap()
}

/// What is sent piece by piece.
struct Lines(mpsc::UnboundedReceiver<Bytes>);

impl Lines {
    fn whole(value: &Value) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(serde_json::to_vec_pretty(value).unwrap().into());
        Self(receiver)
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
