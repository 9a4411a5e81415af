//! An HTTP/1.1 server over the bare socket, so that it can say anything.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;

use super::super::stream::Stream;
use super::answer::{Body, End, Framing, Kind, Response};
use super::message::{Fields, Rest, Wire, parse_request, request_body};
use super::record::{Facts, Place, Recorded, Shared, pattern};

/// What becomes of the connection after an answer.
enum Next {
    Keep,
    End(End),
}

/// Serves one connection to its end.
pub(super) async fn serve(stream: Stream, facts: Facts, shared: &Arc<Shared>) {
    let mut wire = Wire { stream, buffer: BytesMut::new() };
    let mut answered = 0;
    loop {
        let rest = shared.state().idle.clone();
        if let Some(rest) = rest.filter(|_| answered > 0)
            && wire.buffer.is_empty()
            && tokio::time::timeout(rest.next(), wire.fill()).await.is_err()
        {
            let _ = wire.stream.shutdown().await;
            return;
        }
        let end = match exchange(&mut wire, &facts, shared).await {
            Ok(Some(Next::Keep)) => {
                answered += 1;
                let limit = shared.state().close_after;
                if limit.is_none_or(|limit| answered < limit) {
                    continue;
                }
                End::Fin
            }
            Ok(Some(Next::End(end))) => end,
            Ok(None) | Err(_) => End::Fin,
        };
        match end {
            End::Fin => {
                let _ = wire.stream.shutdown().await;
            }
            End::Reset => wire.stream.reset(),
            End::Hang => wire.until_closed().await,
        }
        return;
    }
}

async fn exchange(wire: &mut Wire, facts: &Facts, shared: &Arc<Shared>) -> io::Result<Option<Next>> {
    let Some(head) = wire.head().await? else { return Ok(None) };
    let ([method, target, version], headers) = parse_request(&head)?;
    let mut rest = request_body(&headers)?;
    let wants_continue = headers
        .iter()
        .any(|(name, value)| name.eq_ignore_ascii_case("expect") && value.eq_ignore_ascii_case("100-continue"));
    let is_head = method == "HEAD";
    let recorded = Recorded {
        method,
        target,
        version,
        headers,
        body: Vec::new(),
        body_length: 0,
        body_is_pattern: true,
        trailers: Vec::new(),
        complete: false,
        peer: facts.peer,
        sni: facts.sni.clone(),
        client_certificate: facts.client_certificate.clone(),
        handshake: facts.handshake,
    };
    let (place, answer) = shared.arrived(recorded);
    let mut incoming = Incoming { rest: &mut rest, place, shared };
    if answer.kind.waits_for_body() {
        if wants_continue {
            wire.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        while incoming.piece(wire).await?.is_some() {}
    }
    let slots = shared.state().slots.clone();
    if let Some(slots) = slots {
        wire.unless_closed(slots.work()).await?;
    }
    match answer.kind {
        Kind::Respond(response) => respond(wire, &response, is_head, incoming).await.map(Some),
        Kind::Raw(bytes, end) => {
            wire.write(&bytes).await?;
            Ok(Some(Next::End(end)))
        }
        Kind::Nothing(end) => Ok(Some(Next::End(end))),
        Kind::Upgrade(fields) => {
            wire.write(&head_bytes(101, &fields)).await?;
            loop {
                let bytes = wire.buffer.split();
                wire.write(&bytes).await?;
                if !wire.fill().await? {
                    return Ok(Some(Next::End(End::Fin)));
                }
            }
        }
    }
}

/// The body of the request in hand; what is read of it is recorded.
struct Incoming<'a> {
    rest: &'a mut Rest,
    place: Place,
    shared: &'a Shared,
}

impl Incoming<'_> {
    async fn piece(&mut self, wire: &mut Wire) -> io::Result<Option<Bytes>> {
        let mut trailers = Fields::new();
        let piece = wire.piece(self.rest, &mut trailers).await?;
        match &piece {
            Some(bytes) => self.shared.body_piece(self.place, bytes),
            None => self.shared.finished(self.place, trailers),
        }
        Ok(piece)
    }
}

fn head_bytes(status: u16, fields: &[(String, String)]) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Unknown"));
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.chars().map(|letter| letter as u8).collect()
}

async fn respond(wire: &mut Wire, response: &Response, is_head: bool, mut incoming: Incoming<'_>) -> io::Result<Next> {
    if let Some(gate) = &response.head_gate {
        wire.unless_closed(gate.opened()).await?;
    }
    for (status, fields) in &response.interim {
        wire.write(&head_bytes(*status, fields)).await?;
    }
    let side = incoming.shared.side_text();
    let length = match &response.body {
        Body::Bytes(bytes) => Some(bytes.len() as u64),
        Body::Pattern(length) => Some(*length),
        Body::Side => Some(side.len() as u64),
        Body::Echo => None,
    };
    let has_body = !is_head && !matches!(response.status, 204 | 304);
    let head = head_bytes(response.status, &final_fields(response, length, incoming.shared.side()));
    let piece = response.head_drip.map_or(head.len(), |_| 1);
    for part in head.chunks(piece) {
        wire.write(part).await?;
        if let Some(pause) = response.head_drip {
            wire.unless_closed(tokio::time::sleep(pause)).await?;
        }
    }
    if has_body {
        if let Some(gate) = &response.body_gate {
            wire.unless_closed(gate.opened()).await?;
        }
        if let Some(end) = send_body(wire, response, &side, &mut incoming).await? {
            return Ok(Next::End(end));
        }
    }
    while incoming.piece(wire).await?.is_some() {}
    let closes = response.close || (has_body && response.framing == Framing::UntilClose);
    Ok(if closes { Next::End(End::Fin) } else { Next::Keep })
}

fn final_fields(response: &Response, length: Option<u64>, side: &str) -> Fields {
    let mut fields = response.headers.clone();
    fields.push(("X-Side".into(), side.to_owned()));
    if response.status != 204 && !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        match (response.framing, length) {
            (Framing::Length, Some(length)) => fields.push(("Content-Length".into(), length.to_string())),
            (Framing::Chunked, _) => fields.push(("Transfer-Encoding".into(), "chunked".into())),
            (Framing::UntilClose, _) | (Framing::Length, None) => {}
        }
    }
    let is_announced = fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("trailer"));
    if !response.trailers.is_empty() && !is_announced {
        let names: Vec<&str> = response.trailers.iter().map(|(name, _)| name.as_str()).collect();
        fields.push(("Trailer".into(), names.join(", ")));
    }
    if response.close {
        fields.push(("Connection".into(), "close".into()));
    }
    fields
}

/// Sends the body; gives the end of the connection when the script cuts it.
async fn send_body(
    wire: &mut Wire,
    response: &Response,
    side: &Bytes,
    incoming: &mut Incoming<'_>,
) -> io::Result<Option<End>> {
    let mut sent = 0_u64;
    loop {
        let room = response.drip.map_or(64 * 1024, |(piece, _)| piece as u64);
        let room = room.min(response.cut.map_or(u64::MAX, |(after, _)| after - sent));
        if let Some((_, end)) = response.cut.filter(|(after, _)| *after == sent) {
            return Ok(Some(end));
        }
        let piece = match &response.body {
            Body::Bytes(bytes) => slice(bytes, sent, room),
            Body::Side => slice(side, sent, room),
            Body::Pattern(length) => pattern(sent, room.min(length - sent)),
            Body::Echo => incoming.piece(wire).await?.unwrap_or_default(),
        };
        if piece.is_empty() {
            break;
        }
        sent += piece.len() as u64;
        if response.framing == Framing::Chunked {
            wire.write(&[format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat()).await?;
        } else {
            wire.write(&piece).await?;
        }
        if let Some((_, pause)) = response.drip {
            wire.unless_closed(tokio::time::sleep(pause)).await?;
        }
    }
    if response.framing == Framing::Chunked {
        let mut last = String::from("0\r\n");
        for (name, value) in &response.trailers {
            last.push_str(&format!("{name}: {value}\r\n"));
        }
        wire.write(format!("{last}\r\n").as_bytes()).await?;
    }
    Ok(None)
}

fn slice(bytes: &Bytes, from: u64, room: u64) -> Bytes {
    let rest = bytes.slice(from as usize..);
    let length = rest.len().min(room as usize);
    rest.slice(..length)
}
