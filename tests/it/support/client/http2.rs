//! An HTTP/2 client over hyper, driven by the calling thread.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsConnector;

use super::super::PATIENCE;
use super::Response;

/// One HTTP/2 connection.
pub struct Http2 {
    runtime: Runtime,
    sender: SendRequest<UnsyncBoxBody<Bytes, Infallible>>,
}

/// A request body without a length, which the test makes frame by frame. It ends when its other end is dropped.
pub struct Upload(UnboundedReceiver<Frame<Bytes>>);

impl Upload {
    /// The body and its other end.
    pub fn channel() -> (UnboundedSender<Frame<Bytes>>, Self) {
        let (sender, receiver) = unbounded_channel();
        (sender, Self(receiver))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

impl Http2 {
    /// In clear, by prior knowledge.
    #[track_caller]
    pub fn plain(address: SocketAddr) -> Self {
        Self::open(async move { TcpStream::connect(address).await.unwrap() })
    }

    /// The same from another loopback address, behind these bytes.
    #[track_caller]
    pub fn plain_behind(address: SocketAddr, source: &str, start: &[u8]) -> Self {
        let mut socket = super::connect(address, Some(source.parse().unwrap())).unwrap();
        socket.write_all(start).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self::open(async move { TcpStream::from_std(socket).unwrap() })
    }

    /// Over TLS; fails unless ALPN agrees on h2.
    #[track_caller]
    pub fn tls(address: SocketAddr, sni: &str, config: &Arc<ClientConfig>) -> Self {
        let connector = TlsConnector::from(config.clone());
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        Self::open(async move {
            let stream = connector.connect(name, TcpStream::connect(address).await.unwrap()).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the server agrees on HTTP/2");
            stream
        })
    }

    fn open<S>(connect: impl Future<Output = S>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sender = runtime.block_on(async {
            let stream = connect.await;
            let mut builder = Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).max_header_list_size(1024 * 1024);
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        Self { runtime, sender }
    }

    /// A GET of an absolute address.
    #[track_caller]
    pub fn get(&self, uri: &str) -> Response {
        self.exchange(Request::get(uri).body(Bytes::new()).unwrap())
            .unwrap_or_else(|error| panic!("GET {uri}: {error}"))
    }

    /// One exchange; the error is hyper's text.
    pub fn exchange(&self, request: Request<Bytes>) -> Result<Response, String> {
        self.exchanges(vec![request]).pop().expect("one request, one result")
    }

    /// Exchanges side by side on the one connection; results in the order of the requests.
    pub fn exchanges(&self, requests: Vec<Request<Bytes>>) -> Vec<Result<Response, String>> {
        self.runtime.block_on(async {
            let started: Vec<_> = requests
                .into_iter()
                .map(|request| {
                    let whole = one(self.sender.clone(), request.map(|body| Full::new(body).boxed_unsync()), |_| true);
                    tokio::spawn(tokio::time::timeout(PATIENCE, whole))
                })
                .collect();
            let mut results = Vec::with_capacity(started.len());
            for task in started {
                results.push(task.await.unwrap().unwrap_or_else(|_| Err("timeout".to_owned())));
            }
            results
        })
    }

    /// One exchange whose request has no length; `piece` sees the response's body as it comes, and ends the exchange by
    /// `false`.
    pub fn stream(&self, request: Request<Upload>, piece: impl FnMut(&[u8]) -> bool) -> Result<Response, String> {
        let whole = one(self.sender.clone(), request.map(BodyExt::boxed_unsync), piece);
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, whole).await })
            .unwrap_or_else(|_| Err("timeout".to_owned()))
    }

    /// Sends a request and leaves it, by a reset of its stream, as soon as `condition` holds.
    #[track_caller]
    pub fn leave(&self, request: Request<Bytes>, condition: impl Fn() -> bool) {
        let wait = async {
            let request = request.map(|body| Full::new(body).boxed_unsync());
            let task = tokio::spawn(one(self.sender.clone(), request, |_| true));
            let poll = async {
                while !condition() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(PATIENCE, poll).await.expect("the condition holds in time");
            task.abort();
            assert!(task.await.is_err_and(|error| error.is_cancelled()), "there was no answer yet");
            // The frame goes out with the connection's next turn, which needs this runtime to run.
            let mut sender = self.sender.clone();
            sender.ready().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        self.runtime.block_on(wait);
    }
}

async fn one(
    mut sender: SendRequest<UnsyncBoxBody<Bytes, Infallible>>,
    request: Request<UnsyncBoxBody<Bytes, Infallible>>,
    mut piece: impl FnMut(&[u8]) -> bool,
) -> Result<Response, String> {
    let text = |error: hyper::Error| format!("{error:?}");
    sender.ready().await.map_err(text)?;
    let (head, mut body) = sender.send_request(request).await.map_err(text)?.into_parts();
    let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
    let fields = |map: &http::HeaderMap| {
        map.iter().map(|(name, value)| (name.to_string(), latin1(value.as_bytes()))).collect::<Vec<(String, String)>>()
    };
    let mut response = Response {
        version: format!("{:?}", head.version),
        status: head.status.as_u16(),
        headers: fields(&head.headers),
        ..Response::default()
    };
    while let Some(frame) = body.frame().await {
        match frame.map_err(text)?.into_data() {
            Ok(bytes) => {
                response.body.extend_from_slice(&bytes);
                if !bytes.is_empty() && !piece(&bytes) {
                    break;
                }
            }
            Err(frame) => response.trailers.extend(frame.trailers_ref().map(fields).unwrap_or_default()),
        }
    }
    Ok(response)
}
