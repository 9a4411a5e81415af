//! The same script over HTTP/2, by hyper's server: what only HTTP/1 can say becomes a reset stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response as HttpResponse};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::stream::Stream;
use super::answer::{Body, End, Kind, Response};
use super::message::Fields;
use super::record::{Facts, Place, Recorded, Shared, pattern};

/// Serves one connection to its end.
pub(super) async fn serve(stream: Stream, facts: Facts, shared: &Arc<Shared>) {
    let cut = CancellationToken::new();
    let service = service_fn(|request| exchange(request, facts.clone(), shared.clone(), cut.clone()));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(1024 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = connection => {}
        () = cut.cancelled() => {}
    }
}

/// A body that a task writes into.
struct Piped(mpsc::Receiver<io::Result<Frame<Bytes>>>);

impl HttpBody for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.get_mut().0.poll_recv(context)
    }
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

async fn exchange(
    request: Request<Incoming>,
    facts: Facts,
    shared: Arc<Shared>,
    cut: CancellationToken,
) -> io::Result<HttpResponse<Piped>> {
    let (place, answer) = shared.arrived(recorded(&request, facts));
    let is_head = request.method() == http::Method::HEAD;
    let mut incoming = request.into_body();
    if answer.kind.waits_for_body() {
        while piece(&mut incoming, place, &shared).await?.is_some() {}
    }
    let response = match answer.kind {
        Kind::Respond(response) => response,
        Kind::Nothing(End::Hang) => return std::future::pending().await,
        Kind::Nothing(End::Fin) => {
            cut.cancel();
            return Err(gone());
        }
        Kind::Nothing(End::Reset) | Kind::Raw(..) | Kind::Upgrade(_) => return Err(gone()),
    };
    if let Some(gate) = &response.head_gate {
        gate.opened().await;
    }
    let (sender, receiver) = mpsc::channel(1);
    let mut head = HttpResponse::new(Piped(receiver));
    *head.status_mut() = http::StatusCode::from_u16(response.status).map_err(io::Error::other)?;
    *head.headers_mut() = header_map(&response.headers)?;
    head.headers_mut().insert("x-side", shared.side().parse().map_err(io::Error::other)?);
    if is_head || matches!(response.status, 204 | 304) {
        return Ok(head);
    }
    tokio::spawn(async move {
        if let Err(error) = send_body(&response, &mut incoming, place, &shared, &sender, &cut).await {
            let _ = sender.send(Err(error)).await;
        }
        // The response is complete now, whatever is still to come of the request.
        drop(sender);
        while let Ok(Some(_)) = piece(&mut incoming, place, &shared).await {}
    });
    Ok(head)
}

fn recorded(request: &Request<Incoming>, facts: Facts) -> Recorded {
    let mut headers = Fields::new();
    if let Some(authority) = request.uri().authority() {
        headers.push((":authority".into(), authority.to_string()));
    }
    if let Some(scheme) = request.uri().scheme_str() {
        headers.push((":scheme".into(), scheme.to_owned()));
    }
    headers.extend(fields(request.headers()));
    Recorded {
        method: request.method().to_string(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        version: format!("{:?}", request.version()),
        headers,
        body: Vec::new(),
        body_length: 0,
        body_is_pattern: true,
        trailers: Vec::new(),
        complete: false,
        peer: facts.peer,
        sni: facts.sni,
        client_certificate: facts.client_certificate,
        handshake: facts.handshake,
    }
}

fn fields(map: &HeaderMap) -> Fields {
    let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect();
    map.iter().map(|(name, value)| (name.to_string(), latin1(value.as_bytes()))).collect()
}

fn header_map(fields: &Fields) -> io::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().map_err(io::Error::other)?;
        let latin1: Vec<u8> = value.chars().map(|letter| letter as u8).collect();
        map.append(name, http::HeaderValue::from_bytes(&latin1).map_err(io::Error::other)?);
    }
    Ok(map)
}

async fn piece(incoming: &mut Incoming, place: Place, shared: &Shared) -> io::Result<Option<Bytes>> {
    let mut trailers = Fields::new();
    while let Some(frame) = incoming.frame().await {
        match frame.map_err(io::Error::other)?.into_data() {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                shared.body_piece(place, &bytes);
                return Ok(Some(bytes));
            }
            Err(frame) => trailers.extend(frame.trailers_ref().map(fields).unwrap_or_default()),
        }
    }
    shared.finished(place, trailers);
    Ok(None)
}

async fn send_body(
    response: &Response,
    incoming: &mut Incoming,
    place: Place,
    shared: &Shared,
    sender: &mpsc::Sender<io::Result<Frame<Bytes>>>,
    cut: &CancellationToken,
) -> io::Result<()> {
    if let Some(gate) = &response.body_gate {
        gate.opened().await;
    }
    let side = shared.side_text();
    let mut sent = 0_u64;
    loop {
        let room = response.drip.map_or(16 * 1024, |(piece, _)| piece as u64);
        let room = room.min(response.cut.map_or(u64::MAX, |(after, _)| after - sent));
        match response.cut {
            Some((after, End::Hang)) if after == sent => return std::future::pending().await,
            Some((after, End::Reset)) if after == sent => return Err(gone()),
            Some((after, End::Fin)) if after == sent => {
                cut.cancel();
                return Err(gone());
            }
            Some(_) | None => {}
        }
        let next = match &response.body {
            Body::Bytes(bytes) => bytes.slice((sent as usize)..bytes.len().min((sent + room) as usize)),
            Body::Side => side.slice((sent as usize)..side.len().min(sent.saturating_add(room) as usize)),
            Body::Pattern(length) => pattern(sent, room.min(length - sent)),
            Body::Echo => piece(incoming, place, shared).await?.unwrap_or_default(),
        };
        if next.is_empty() {
            break;
        }
        sent += next.len() as u64;
        sender.send(Ok(Frame::data(next))).await.map_err(|_| gone())?;
        if let Some((_, pause)) = response.drip {
            tokio::time::sleep(pause).await;
        }
    }
    if !response.trailers.is_empty() {
        let trailers = Frame::trailers(header_map(&response.trailers)?);
        sender.send(Ok(trailers)).await.map_err(|_| gone())?;
    }
    Ok(())
}
