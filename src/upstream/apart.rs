//! Requests of our own on connections of their own: made as those of requests are, and never seen by the pool, the breaker
//! or the meters. Health checks and examinations use them.

use std::pin::pin;
use std::time::{Duration, Instant};

use http::{Request, Response, response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::body::{OutBody, is_whole};
use super::connect::{ConnectError, Connected, Wanted};
use super::pool::{Pool, RESPONSE_FIELDS};
use crate::net::stream::Stream;
use crate::tls::verify::refuses_certificate;

/// Addresses that are tried: requests try others too when one refuses.
const ADDRESSES: usize = 4;

/// How long a backend may take to say goodbye after a handshake, and in how many pieces.
const GOODBYE: Duration = Duration::from_secs(1);
const GOODBYE_READS: usize = 16;

/// An answer, as much of its body read as was asked for.
#[derive(Debug)]
pub struct Reply {
    /// Status and fields.
    pub head: response::Parts,
    /// The body, or its beginning.
    pub body: Vec<u8>,
    /// Nothing of the body is missing.
    pub is_whole: bool,
}

/// A connection of its own.
///
/// # Errors
///
/// The step that failed.
pub async fn connect(pool: &Pool, wanted: Wanted, host: &str, deadline: Instant) -> Result<Connected, ConnectError> {
    let mut tries = 1;
    loop {
        match pool.connect_apart(wanted, host, deadline).await {
            Err(error) if error.has_alternative && tries < ADDRESSES => tries += 1,
            other => return other,
        }
    }
}

/// Ends a connection on which nothing is asked. A TLS 1.3 server judges our certificate when the handshake is already over
/// for us, so its refusal comes only now.
///
/// # Errors
///
/// The server's alert.
pub async fn part<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
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
        Ok(Err(error)) if refuses_certificate(&error) => Err(error),
        // Anything else is a matter of manners.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Asks once. At most `most` bytes of the body are read, and what becomes of the rest does not matter.
///
/// # Errors
///
/// The connection ended without an answer, or the answer makes no sense. The deadline is the caller's.
pub async fn ask(
    pool: &Pool,
    connected: Connected,
    request: Request<OutBody>,
    most: usize,
    deadline: Instant,
) -> hyper::Result<Reply> {
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
        driven(connection, async { Ok(read(sender.send_request(request).await?, most, deadline).await) }).await
    } else {
        let mut builder = http1::Builder::new();
        builder.max_header_size(pool.response_head()).max_headers(RESPONSE_FIELDS);
        let (mut sender, connection) = builder.handshake(io).await?;
        driven(connection, async { Ok(read(sender.send_request(request).await?, most, deadline).await) }).await
    }
}

async fn read(response: Response<Incoming>, most: usize, deadline: Instant) -> Reply {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    let rest = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let data = frame.data_ref().map_or(&[][..], |data| data);
            let room = most - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                return false;
            }
        }
        is_whole(&body, head.version)
    };
    // A little before the end, so that a slow body does not take the status with it.
    let slack = deadline.saturating_duration_since(Instant::now()) / 10;
    let is_whole = tokio::time::timeout_at((deadline - slack).into(), rest).await.unwrap_or(false);
    Reply { head, body: bytes, is_whole }
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

/// Whether the bytes are encrypted by us.
pub fn is_tls(stream: &Stream) -> bool {
    matches!(stream, Stream::Client(_))
}
