//! Interim responses of an upstream (RFC 9110, 15.2). 103 Early Hints and its kin go to HTTP/1.1 clients as they come; a 100
//! asks for the body of a client that waits for it. hyper can send neither by itself, so they are put in front of the
//! final head in the connection's [`Flow`]. On HTTP/2, on either side, it knows none, and they are dropped.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use http::{HeaderMap, Request, StatusCode, Version, header};

use super::connection::Flow;
use crate::upstream::body::{Gate, OutBody};

/// What is told of interim responses to one request.
#[derive(Clone, Debug)]
pub struct Interim {
    flow: Option<Arc<Flow>>,
    waker: Waker,
    gate: Option<Arc<Gate>>,
}

impl Interim {
    /// For a request of this version. The task that asks is the connection's, which has to write what comes.
    pub async fn new(flow: &Arc<Flow>, version: Version, gate: Option<Arc<Gate>>) -> Self {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        Self { flow: (version == Version::HTTP_11).then(|| flow.clone()), waker, gate }
    }

    /// The client was never asked for its body, and will not be any more.
    pub fn holds_body(&self) -> bool {
        self.gate.as_ref().is_some_and(|gate| !gate.was_opened())
    }

    /// What holds the body back.
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    /// Listens for what comes before the final head on a connection of this version.
    pub fn listen(&self, request: &mut Request<OutBody>, version: Version) {
        if version != Version::HTTP_11 {
            // Nothing will be heard, so the body is not waited for.
            self.open_gate();
        } else if self.flow.is_some() || self.gate.is_some() {
            let this = self.clone();
            hyper::ext::on_informational(request, move |head| this.heard(head.status(), head.headers()));
        }
    }

    fn heard(&self, status: StatusCode, headers: &HeaderMap) {
        match (status, &self.flow) {
            (StatusCode::CONTINUE, _) => self.open_gate(),
            (StatusCode::SWITCHING_PROTOCOLS, _) | (_, None) => {}
            (_, Some(flow)) => {
                flow.push_interim(&head_of(status, headers));
                self.waker.wake_by_ref();
            }
        }
    }

    fn open_gate(&self) {
        if let Some(gate) = &self.gate {
            gate.open();
        }
    }

    /// Waits until what has come before is written: the final head must not overtake it.
    pub async fn written(&self) {
        let Some(flow) = self.flow.as_ref().filter(|flow| flow.has_interim()) else { return };
        poll_fn(|_| if flow.has_interim() { Poll::Pending } else { Poll::Ready(()) }).await;
    }
}

fn head_of(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut line = String::new();
    // Writing to a String never fails.
    let _ = write!(line, "HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut head = line.into_bytes();
    let named = headers.get_all(header::CONNECTION);
    let is_named = |name: &str| named.iter().any(|value| value.to_str().is_ok_and(|list| lists(list, name)));
    for (name, value) in headers {
        if !is_between_hops(name.as_str()) && !is_named(name.as_str()) {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn lists(list: &str, name: &str) -> bool {
    list.split(',').any(|member| member.trim().eq_ignore_ascii_case(name))
}

/// Fields that mean one connection only, and those that frame a body, which an interim response has not.
fn is_between_hops(name: &str) -> bool {
    const FIELDS: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "content-length",
        "upgrade",
        "alt-svc",
    ];
    FIELDS.contains(&name)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_interim_head_has_no_framing_and_nothing_of_the_connection() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("link", "</a.css>; rel=preload"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("link", "</b.js>"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }

        let head = String::from_utf8(head_of(StatusCode::EARLY_HINTS, &headers)).unwrap();

        assert_eq!(head, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>\r\n\r\n");
    }
}
