//! tonic on both sides of the proxy: a service written by hand, so that no protoc is needed, and a client for it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::stream::Stream;

/// The only message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    /// Its text.
    #[prost(string, tag = "1")]
    pub text: String,
}

impl Text {
    /// A message with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<Text, Status>> + Send>>;

/// What the servers of one test share with it.
pub struct Shared {
    side: &'static str,
    /// Path and metadata of each call.
    calls: Mutex<Vec<(String, MetadataMap)>>,
    /// Fails calls with this code.
    failure: Mutex<Option<Code>>,
    gate: watch::Sender<bool>,
    /// Calls of `Hold` that wait.
    held: watch::Sender<usize>,
}

/// A gRPC server on a thread of its own.
///
/// `Unary`, `Collect`, `Repeat` and `Chat` are the four kinds of calls; each answer names the side. `Fail` fails with what
/// the metadata `code` says, `FailLate` after two messages; `Hold` waits until the test lets it go.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// In clear, or behind TLS.
    pub fn start(side: &'static str, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            side,
            calls: Mutex::default(),
            failure: Mutex::default(),
            gate: watch::channel(false).0,
            held: watch::channel(0).0,
        });
        let (stop, echo) = (CancellationToken::new(), Echo(shared.clone()));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (sender, incoming) = mpsc::channel(16);
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = accept(listener, tls.map(TlsAcceptor::from), sender) => {}
                    served = Server::builder().serve_with_incoming(echo, ReceiverStream::new(incoming)) => served.unwrap(),
                }
            });
        });
        Self { address, shared, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes everything at once.
    pub fn kill(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Fails every call with this code, or none.
    pub fn fail(&self, code: Option<Code>) {
        *self.shared.failure.lock().unwrap() = code;
    }

    /// Lets the calls of `Hold` go.
    pub fn let_go(&self) {
        self.shared.gate.send_replace(true);
    }

    /// Calls of `Hold` that wait.
    pub fn held(&self) -> usize {
        *self.shared.held.borrow()
    }

    /// How many calls have come.
    pub fn calls(&self) -> usize {
        self.shared.calls.lock().unwrap().len()
    }

    /// Path and metadata of the newest call.
    #[track_caller]
    pub fn last(&self) -> (String, MetadataMap) {
        self.shared.calls.lock().unwrap().last().expect("a call has come").clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, sender: mpsc::Sender<std::io::Result<Stream>>) {
    while let Ok((socket, _)) = listener.accept().await {
        socket.set_nodelay(true).unwrap();
        let stream = match &tls {
            None => Ok(Stream::Plain(socket)),
            Some(tls) => tls.accept(socket).await.map(|stream| Stream::Tls(Box::new(stream))),
        };
        // Who fails the handshake is no client.
        if let Ok(stream) = stream
            && sender.send(Ok(stream)).await.is_err()
        {
            return;
        }
    }
}

/// The service.
#[derive(Clone)]
struct Echo(Arc<Shared>);

/// A function as tonic wants its handlers.
struct Handler<F>(F);

impl<F, R, T, Answer> Service<Request<R>> for Handler<F>
where
    F: FnMut(Request<R>) -> Answer,
    Answer: Future<Output = Result<Response<T>, Status>>,
{
    type Response = Response<T>;
    type Error = Status;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<R>) -> Answer {
        (self.0)(request)
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move { Ok(answer(shared, request).await) })
    }
}

async fn answer(shared: Arc<Shared>, request: http::Request<Body>) -> http::Response<Body> {
    let metadata = MetadataMap::from_headers(request.headers().clone());
    let path = request.uri().path().to_owned();
    shared.calls.lock().unwrap().push((path.clone(), metadata));
    let failure = *shared.failure.lock().unwrap();
    if let Some(code) = failure {
        return Status::new(code, "told to fail").into_http();
    }
    let side = shared.side;
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
    let method = path.strip_prefix("/test.Echo/").unwrap_or_default();
    match method {
        "Unary" => {
            let unary = |request: Request<Text>| async move {
                let mut response = Response::new(Text::new(format!("{side}: {}", request.get_ref().text)));
                greet(response.metadata_mut(), request.metadata());
                Ok(response)
            };
            grpc.unary(Handler(unary), request).await
        }
        "Collect" => {
            let collect = |request: Request<Streaming<Text>>| async move {
                let mut messages = request.into_inner();
                let mut all = Vec::new();
                while let Some(message) = messages.message().await? {
                    all.push(message.text);
                }
                Ok(Response::new(Text::new(format!("{side}: {}", all.join("+")))))
            };
            grpc.client_streaming(Handler(collect), request).await
        }
        "Repeat" => {
            let repeat = |request: Request<Text>| async move {
                let text = request.into_inner().text;
                let messages = (0..3).map(move |number| Ok(Text::new(format!("{side} {number}: {text}"))));
                Ok(Response::new(Box::pin(tokio_stream::iter(messages)) as Answers))
            };
            grpc.server_streaming(Handler(repeat), request).await
        }
        "Chat" => {
            let chat = |request: Request<Streaming<Text>>| async move {
                let messages = request.into_inner();
                let answers =
                    messages.map(move |message| message.map(|message| Text::new(format!("{side}: {}", message.text))));
                Ok(Response::new(Box::pin(answers) as Answers))
            };
            grpc.streaming(Handler(chat), request).await
        }
        "Fail" => {
            let fail = |request: Request<Text>| async move { Err::<Response<Text>, _>(failure_of(request.metadata())) };
            grpc.unary(Handler(fail), request).await
        }
        "FailLate" => {
            let fail = |request: Request<Text>| async move {
                let failure = failure_of(request.metadata());
                let messages = [Ok(Text::new("one")), Ok(Text::new("two")), Err(failure)];
                Ok(Response::new(Box::pin(tokio_stream::iter(messages)) as Answers))
            };
            grpc.server_streaming(Handler(fail), request).await
        }
        "Hold" => {
            let hold = |_: Request<Text>| {
                let held = Held::new(shared.clone());
                async move {
                    let _ = held.0.gate.subscribe().wait_for(|open| *open).await;
                    Ok(Response::new(Text::new(format!("{side}: at last"))))
                }
            };
            grpc.unary(Handler(hold), request).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}

/// Counts a call that waits, also when it is left.
struct Held(Arc<Shared>);

impl Held {
    fn new(shared: Arc<Shared>) -> Self {
        shared.held.send_modify(|held| *held += 1);
        Self(shared)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| *held -= 1);
    }
}

/// Metadata of the answer: what was asked for, in both forms.
fn greet(answer: &mut MetadataMap, asked: &MetadataMap) {
    for value in asked.get_all("x-text") {
        answer.append("x-text", value.clone());
    }
    for value in asked.get_all_bin("x-bytes-bin") {
        answer.append_bin("x-bytes-bin", value.clone());
    }
}

fn failure_of(asked: &MetadataMap) -> Status {
    let code = asked.get("code").and_then(|code| code.to_str().ok()).and_then(|code| code.parse().ok()).unwrap_or(2);
    let mut trailers = MetadataMap::new();
    trailers.insert("x-why", MetadataValue::from_static("asked for"));
    trailers.insert_bin("x-bytes-bin", MetadataValue::from_bytes(&[0, 255, 10]));
    Status::with_details_and_metadata(
        Code::from(code),
        "nö: \"50 %\"\n",
        bytes::Bytes::from_static(&[1, 2, 0]),
        trailers,
    )
}

/// A tonic channel to `address` for calls of `host`, with the calls that [`Backend`] knows.
pub struct Caller {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

fn path(method: &str) -> http::uri::PathAndQuery {
    format!("/test.Echo/{method}").parse().unwrap()
}

fn codec() -> ProstCodec<Text, Text> {
    ProstCodec::default()
}

impl Caller {
    /// Connects in clear.
    #[track_caller]
    pub fn new(address: SocketAddr, host: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .origin(format!("http://{host}").parse().unwrap())
            .timeout(super::PATIENCE);
        let channel = runtime.block_on(endpoint.connect()).unwrap();
        Self { runtime, channel }
    }

    async fn grpc(&self) -> tonic::client::Grpc<Channel> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.unwrap();
        grpc
    }

    /// One message, one answer.
    pub fn unary(&self, method: &str, request: Request<Text>) -> Result<Response<Text>, Status> {
        self.runtime.block_on(async { self.grpc().await.unary(request, path(method), codec()).await })
    }

    /// One message with this text; the answer's text.
    pub fn ask(&self, method: &str, text: &str) -> Result<String, Status> {
        self.unary(method, Request::new(Text::new(text))).map(|response| response.into_inner().text)
    }

    /// Many messages, one answer.
    pub fn collect(&self, texts: &[&str]) -> Result<String, Status> {
        let messages: Vec<Text> = texts.iter().map(|text| Text::new(*text)).collect();
        let request = Request::new(tokio_stream::iter(messages));
        self.runtime
            .block_on(async { self.grpc().await.client_streaming(request, path("Collect"), codec()).await })
            .map(|response: Response<Text>| response.into_inner().text)
    }

    /// One message, many answers, and how it ends.
    pub fn repeat(&self, method: &str, request: Request<Text>) -> (Vec<String>, Result<MetadataMap, Status>) {
        self.runtime.block_on(async {
            let response = self.grpc().await.server_streaming(request, path(method), codec()).await;
            let mut answers = match response {
                Ok(response) => Response::<Streaming<Text>>::into_inner(response),
                Err(status) => return (Vec::new(), Err(status)),
            };
            let mut texts = Vec::new();
            loop {
                match answers.message().await {
                    Ok(Some(message)) => texts.push(message.text),
                    Ok(None) => break,
                    Err(status) => return (texts, Err(status)),
                }
            }
            (texts, answers.trailers().await.map(Option::unwrap_or_default))
        })
    }

    /// Says one after the other, each when the answer before it has come.
    pub fn chat(&self, texts: &[&str]) -> Result<Vec<String>, Status> {
        self.runtime.block_on(async {
            let (sender, messages) = mpsc::channel(1);
            sender.send(Text::new(texts[0])).await.unwrap();
            let request = Request::new(ReceiverStream::new(messages));
            let response = self.grpc().await.streaming(request, path("Chat"), codec()).await?;
            let mut answers: Streaming<Text> = response.into_inner();
            let mut heard = Vec::new();
            for text in texts[1..].iter().map(Some).chain([None]) {
                heard.push(answers.message().await?.expect("an answer to each").text);
                if let Some(text) = text {
                    sender.send(Text::new(*text)).await.unwrap();
                }
            }
            drop(sender);
            assert_eq!(answers.message().await?, None);
            Ok(heard)
        })
    }

    /// Begins a call of `Hold` and leaves it once `condition` holds.
    pub fn leave(&self, condition: impl Fn() -> bool) {
        self.runtime.block_on(async {
            let mut grpc = self.grpc().await;
            let hold =
                async move { grpc.unary::<Text, Text, _>(Request::new(Text::new("")), path("Hold"), codec()).await };
            let call = tokio::spawn(hold);
            let condition = async {
                while !condition() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(super::PATIENCE, condition).await.expect("the condition holds in time");
            call.abort();
            assert!(call.await.is_err_and(|error| error.is_cancelled()), "there was no answer yet");
        });
    }
}
