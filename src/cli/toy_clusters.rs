//! The demo's two clusters: old answers plain HTTP, new answers behind TLS with a certificate of a throw-away authority.
//! Both say who they are and which host they were asked for. They live on a thread of their own and end with their owner.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::Cluster;
use crate::net::stream::Stream;

/// Certificates of the demo are good for so long: further away than the end that `status` warns of.
const VALIDITY: Duration = Duration::from_secs(60 * 24 * 3600);
/// Clocks of other machines may be this late.
const CLOCK_ERROR: Duration = Duration::from_secs(3600);
/// After an accept that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// The demo's certificate authority.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(super) pem: String,
}

impl Authority {
    pub(super) fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "migration-proxy demo");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        limit(&mut params);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A server certificate for these names, and its key.
    pub(super) fn issue(&self, names: &[String]) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        limit(&mut params);
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

fn limit(params: &mut CertificateParams) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_ERROR).into();
    params.not_after = (now + VALIDITY).into();
}

/// Writes a certificate and its key where a listener reads them.
pub(super) fn write_pair(certificate: &rcgen::Certificate, key: &KeyPair, directory: &Path) -> io::Result<()> {
    std::fs::write(directory.join("front.crt"), certificate.pem())?;
    std::fs::write(directory.join("front.key"), key.serialize_pem())
}

/// Both clusters while they run.
pub(super) struct ToyClusters {
    pub(super) old: SocketAddr,
    pub(super) new: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl ToyClusters {
    /// Binds both on loopback; new shows this certificate.
    pub(super) fn start(certificate: &rcgen::Certificate, key: &KeyPair) -> io::Result<Self> {
        let tls = TlsAcceptor::from(Arc::new(server_config(certificate, key).map_err(io::Error::other)?));
        let (old, new) = (StdListener::bind("127.0.0.1:0")?, StdListener::bind("127.0.0.1:0")?);
        let addresses = (old.local_addr()?, new.local_addr()?);
        old.set_nonblocking(true)?;
        new.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (old, new) = {
            let _inside = runtime.enter();
            (TcpListener::from_std(old)?, TcpListener::from_std(new)?)
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let both = async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = serve(old, None, Cluster::Old) => {}
                () = serve(new, Some(tls), Cluster::New) => {}
            }
        };
        let thread = Builder::new().name("toy-clusters".to_owned()).spawn(move || runtime.block_on(both))?;
        Ok(Self { old: addresses.0, new: addresses.1, stop, thread: Some(thread) })
    }
}

impl Drop for ToyClusters {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It has no result; a panic has been printed.
            let _ = thread.join();
        }
    }
}

fn server_config(certificate: &rcgen::Certificate, key: &KeyPair) -> Result<ServerConfig, rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
}

/// Accepts for ever. Its connections end when it is dropped.
async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, cluster: Cluster) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, tls.clone(), cluster));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, cluster: Cluster) {
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => Stream::Server(Box::new(stream)),
            Err(_) => return,
        },
    };
    let answer = move |request| async move {
        tokio::time::sleep(thinking_time(cluster)).await;
        Ok::<_, Infallible>(answer(cluster, &request))
    };
    // A proxy that leaves is how every connection ends.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// A few milliseconds, on old a few more: what there is to compare looks like something.
fn thinking_time(cluster: Cluster) -> Duration {
    let most = match cluster {
        Cluster::Old => 9_000,
        Cluster::New => 6_000,
    };
    Duration::from_micros(rand::random_range(most / 6..most))
}

fn answer(cluster: Cluster, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let host = request.headers().get(HOST).map_or("-".into(), |host| String::from_utf8_lossy(host.as_bytes()));
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let text = format!("hello from the {} cluster: host {host}, path {target}\n", cluster.as_str());
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::super::client::exchange;
    use super::*;
    use http_body_util::Full;

    #[tokio::test]
    async fn old_says_who_it_is_and_whom_it_was_asked_for() {
        let authority = Authority::new().unwrap();
        let (certificate, key) = authority.issue(&["shop.new.example".to_owned()]).unwrap();
        let clusters = ToyClusters::start(&certificate, &key).unwrap();

        let stream = TcpStream::connect(clusters.old).await.unwrap();
        let request = Request::get("/a?b").header(HOST, "shop.old.example").body(Full::default()).unwrap();
        let answer = exchange(stream, request).await.unwrap();

        assert_eq!(answer.body, "hello from the old cluster: host shop.old.example, path /a?b\n");
    }
}
