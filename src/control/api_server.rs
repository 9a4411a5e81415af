//! The way to the API server of Kubernetes: its address and our credentials as the kubelet gives them to a pod, and the
//! one connection that all requests share. Token and authority are read again whenever they are needed, as they rotate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, HOST, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::config::Environment;
use crate::tls::{self, pem};

/// Where the kubelet puts the credentials of a pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Names another directory for them.
const DIRECTORY: &str = "MIGRATION_PROXY_SERVICE_ACCOUNT";

/// Name, TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection that answers no ping within these has died without a word.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);

/// No answer of ours is larger; a watch that has told so much begins anew.
const LARGEST_ANSWER: usize = 64 << 20;

const NAME: HeaderValue = HeaderValue::from_static(concat!("migration-proxy/", env!("CARGO_PKG_VERSION")));

/// What goes wrong on the way.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// An API server and our credentials there.
#[derive(Clone)]
pub struct ApiServer {
    host: String,
    authority: Authority,
    port: u16,
    directory: PathBuf,
    /// The connection, while there is one that takes several requests at a time.
    shared: Arc<Mutex<Option<http2::SendRequest<Body>>>>,
}

impl ApiServer {
    /// That of the cluster that we run in.
    ///
    /// # Errors
    ///
    /// We run in none, or in a pod without a service account.
    pub fn of_this_pod(environment: &Environment) -> Result<Self, String> {
        let variable = |name: &str| environment.get(name).filter(|value| !value.is_empty());
        let host = variable("KUBERNETES_SERVICE_HOST").ok_or("KUBERNETES_SERVICE_HOST is not set")?.clone();
        let port = variable("KUBERNETES_SERVICE_PORT").map_or("443", String::as_str);
        let port: u16 = port.parse().map_err(|_| format!("KUBERNETES_SERVICE_PORT is {port:?}"))?;
        let bracketed = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let authority = bracketed.parse().map_err(|_| format!("KUBERNETES_SERVICE_HOST is {host:?}"))?;
        let directory = PathBuf::from(variable(DIRECTORY).map_or(SERVICE_ACCOUNT, String::as_str));
        let token = directory.join("token");
        if !token.is_file() {
            return Err(format!("there is no service account token: {}", token.display()));
        }
        Ok(Self { host, authority, port, directory, shared: Arc::default() })
    }

    /// The namespace of the pod.
    ///
    /// # Errors
    ///
    /// Nobody has told us.
    pub fn namespace(&self) -> Result<String, String> {
        let file = self.directory.join("namespace");
        let text = read(&file)?;
        Ok(text.trim().to_owned()).and_then(|name: String| {
            if name.is_empty() { Err(format!("{} is empty", file.display())) } else { Ok(name) }
        })
    }

    async fn send(self, mut request: Request<Body>) -> Result<Response<Limited<Incoming>>, Error> {
        let token = read(&self.directory.join("token"))?;
        let mut token = HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
        token.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, token);
        request.headers_mut().insert(USER_AGENT, NAME);
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        let open = self.lock().as_ref().filter(|sender| !sender.is_closed()).cloned();
        let answer = match open {
            Some(sender) => self.over_http2(sender, request).await?,
            None => {
                let stream = tokio::time::timeout(CONNECT, self.connect()).await;
                let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    let sender = handshake(stream).await?;
                    *self.lock() = Some(sender.clone());
                    self.over_http2(sender, request).await?
                } else {
                    self.over_http1(stream, request).await?
                }
            }
        };
        Ok(answer.map(|body| Limited::new(body, LARGEST_ANSWER)))
    }

    async fn over_http2(
        &self,
        mut sender: http2::SendRequest<Body>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(uri)?;
        *request.version_mut() = Version::HTTP_2;
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    /// A gateway in between may speak nothing newer: then each request has a connection of its own.
    async fn over_http1(
        &self,
        stream: TlsStream<TcpStream>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        request.headers_mut().insert(HOST, HeaderValue::from_str(self.authority.as_str())?);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        #[expect(clippy::disallowed_methods, reason = "owned by the control runtime; ends with its one answer")]
        tokio::spawn(connection);
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, Error> {
        let file = self.directory.join("ca.crt");
        let roots = pem::roots(&file, &pem::read(&file)?)?;
        let name = ServerName::try_from(self.host.clone())?;
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        socket.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(config(roots)?));
        Ok(connector.connect(name, socket).await?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<http2::SendRequest<Body>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn handshake(stream: TlsStream<TcpStream>) -> Result<http2::SendRequest<Body>, Error> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    #[expect(clippy::disallowed_methods, reason = "owned by the control runtime; ends with the connection")]
    tokio::spawn(connection);
    Ok(sender)
}

fn config(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn read(file: &Path) -> Result<String, String> {
    let text = pem::read(file).map_err(|error| error.to_string())?;
    String::from_utf8(text).map_err(|_| format!("{}: not UTF-8", file.display()))
}

impl Service<Request<Body>> for ApiServer {
    type Response = Response<Limited<Incoming>>;
    type Error = Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_environment_and_its_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let server = |variables: &[(&str, &str)]| {
            let own = |text: &&str| (*text).to_owned();
            ApiServer::of_this_pod(&variables.iter().map(|(name, value)| (own(name), own(value))).collect())
        };
        let at = |host: &'static str, port: &'static str| {
            server(&[("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", port), (DIRECTORY, &path)])
        };
        let error = |server: Result<ApiServer, String>| server.err().unwrap();

        assert!(error(server(&[])).contains("KUBERNETES_SERVICE_HOST"));
        assert!(error(at("10.0.0.1", "443")).contains("no service account token"));
        std::fs::write(directory.path().join("token"), "x").unwrap();
        assert!(error(at("10.0.0.1", "many")).contains("KUBERNETES_SERVICE_PORT"));
        assert!(error(at("a b", "443")).contains("KUBERNETES_SERVICE_HOST"));
        for (host, expected) in [("10.0.0.1", "10.0.0.1:6443"), ("fd00::1", "[fd00::1]:6443"), ("api.x", "api.x:6443")]
        {
            assert_eq!(at(host, "6443").unwrap().authority.as_str(), expected);
        }
        let server = at("10.0.0.1", "443").unwrap();
        assert!(server.namespace().unwrap_err().contains("namespace"));
        std::fs::write(directory.path().join("namespace"), " team\n").unwrap();
        assert_eq!(server.namespace().unwrap(), "team");
    }
}
