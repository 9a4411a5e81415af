//! WebSocket by tungstenite on both sides of the proxy: an echo server and a blocking client.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};
use tokio_util::sync::CancellationToken;

use super::PATIENCE;
use super::stream::Stream;

/// How a socket ended, as its server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By a close frame with this code and reason.
    Closed(Option<(u16, String)>),
    /// Without one.
    Cut,
}

#[derive(Default)]
struct Shared {
    handshakes: Mutex<Vec<(String, HeaderMap)>>,
    ends: Mutex<Vec<Ended>>,
}

/// A server that sends every message back. It speaks the subprotocol `second`, refuses the path `/refused` by 403, closes
/// when it hears `close`, leaves without a word when it hears `leave`, and sends a ping when it hears `ping`.
pub struct EchoServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// In clear, or behind TLS.
    pub fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, stop) = (Arc::<Shared>::default(), CancellationToken::new());
        let (state, stopped) = (shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = accept(listener, tls.map(TlsAcceptor::from), state) => {}
                }
            });
        });
        Self { address, shared, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Target and fields of each handshake.
    pub fn handshakes(&self) -> Vec<(String, HeaderMap)> {
        self.shared.handshakes.lock().unwrap().clone()
    }

    /// How sockets ended.
    pub fn ends(&self) -> Vec<Ended> {
        self.shared.ends.lock().unwrap().clone()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), shared.clone());
        tokio::spawn(async move {
            socket.set_nodelay(true).unwrap();
            let stream = match tls {
                None => Stream::Plain(socket),
                Some(tls) => match tls.accept(socket).await {
                    Ok(stream) => Stream::Tls(Box::new(stream)),
                    Err(_) => return,
                },
            };
            if let Ok(socket) = handshake(stream, &shared).await {
                let end = echo(socket).await;
                shared.ends.lock().unwrap().push(end);
            }
        });
    }
}

async fn handshake(stream: Stream, shared: &Shared) -> Result<WebSocketStream<Stream>, Error> {
    #[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
    let choose = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        shared.handshakes.lock().unwrap().push((request.uri().to_string(), request.headers().clone()));
        if request.uri().path() == "/refused" {
            let refused = http::Response::builder().status(403).header("Content-Length", 11);
            return Err(refused.body(Some("not for you".to_owned())).unwrap());
        }
        let offers = request.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|offers| offers.to_str().ok());
        if offers.is_some_and(|offers| offers.split(", ").any(|offer| offer == "second")) {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, "second".parse().unwrap());
        }
        Ok(response)
    };
    accept_hdr_async(stream, choose).await
}

async fn echo(mut socket: WebSocketStream<Stream>) -> Ended {
    while let Some(Ok(message)) = socket.next().await {
        let sent = match &message {
            Message::Text(text) if text.as_str() == "close" => {
                let frame = CloseFrame { code: CloseCode::from(4001), reason: "as you wish".into() };
                socket.close(Some(frame)).await
            }
            Message::Text(text) if text.as_str() == "leave" => return Ended::Cut,
            Message::Text(text) if text.as_str() == "ping" => {
                socket.send(Message::Ping("from the server".into())).await
            }
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            Message::Close(frame) => {
                // tungstenite answers by itself; what is left of it goes out with the end of the stream.
                let frame = frame.as_ref().map(|frame| (u16::from(frame.code), frame.reason.to_string()));
                while let Some(Ok(_)) = socket.next().await {}
                let _ = socket.get_mut().shutdown().await;
                return Ended::Closed(frame);
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(()),
        };
        if sent.is_err() {
            break;
        }
    }
    Ended::Cut
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// A client that blocks.
pub struct Socket {
    runtime: Runtime,
    socket: WebSocketStream<Box<dyn Wire>>,
    /// The answer to its handshake.
    pub response: http::Response<Option<Vec<u8>>>,
}

impl Socket {
    /// Opens `ws://HOST/TARGET` by way of `address`; over TLS where a configuration is given.
    pub fn open(
        address: SocketAddr,
        url: &str,
        fields: &[(&'static str, &str)],
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, Box<Error>> {
        let mut request = url.into_client_request().unwrap();
        for (name, value) in fields {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let host = request.uri().host().unwrap().to_owned();
        let runtime = runtime();
        let opened = runtime.block_on(async {
            let tcp = TcpStream::connect(address).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let wire: Box<dyn Wire> = match tls {
                None => Box::new(tcp),
                Some(config) => {
                    Box::new(TlsConnector::from(config.clone()).connect(host.try_into().unwrap(), tcp).await.unwrap())
                }
            };
            tokio::time::timeout(PATIENCE, client_async(request, wire)).await.expect("the handshake ends in time")
        });
        let (socket, response) = opened.map_err(Box::new)?;
        Ok(Self { runtime, socket, response })
    }

    /// Sends a message.
    #[track_caller]
    pub fn send(&mut self, message: Message) {
        self.runtime.block_on(self.socket.send(message)).unwrap();
    }

    /// The next message; `None` at the end of the stream behind a close frame, an error at an end without one.
    pub fn next(&mut self) -> Option<Result<Message, Error>> {
        self.next_within(PATIENCE).expect("a message, or the end, in time")
    }

    fn next_within(&mut self, patience: Duration) -> Option<Option<Result<Message, Error>>> {
        let Self { runtime, socket, .. } = self;
        runtime.block_on(async { tokio::time::timeout(patience, socket.next()).await.ok() })
    }

    /// Sends a text and reads it back.
    #[track_caller]
    pub fn assert_echo(&mut self, text: &str) {
        self.send(Message::text(text));
        let back = self.next().expect("a message").unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(back, Message::text(text));
    }

    /// The stream ends, and nobody says why in the name of the other side.
    #[track_caller]
    pub fn assert_cut(&mut self) {
        match self.next() {
            Some(Err(Error::Protocol(_) | Error::Io(_))) => {}
            other => panic!("instead of an end without a close frame: {other:?}"),
        }
    }
}
