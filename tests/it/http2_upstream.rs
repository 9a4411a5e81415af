//! HTTP/2 towards a cluster that refuses, resets and says goodbye: what it did not process is sent again, whatever it is;
//! what it may have processed is not; and what it cut off is not passed on as whole.

use std::time::Duration;

use bytes::Bytes;
use http::Request;

use crate::support::app::Proxy;
use crate::support::client::Http2;
use crate::support::frame_origin::{Arrival, FrameOrigin, Move};
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
/// Every stream so far.
const ALL: u32 = 0x7fff_ffff;

/// A proxy whose old cluster is this origin.
fn proxy(clusters: &Clusters, origin: &FrameOrigin) -> Proxy {
    let service = clusters.service("a").old_backend(origin.address()).with("old: {protocol: h2c}");
    Proxy::start(&Setup::new([service]))
}

/// The status of a request.
fn ask(proxy: &Proxy, method: &str, body: &[u8]) -> u16 {
    proxy.client().exchange(method, HOST, "/", &[], body).unwrap().status
}

const REQUESTS: [(&str, &[u8]); 5] =
    [("GET", b""), ("POST", b""), ("DELETE", b""), ("POST", b"hello"), ("PATCH", &[b'x'; 50_000])];

#[test]
fn what_the_peer_did_nothing_with_is_sent_again_whatever_it_is() {
    let clusters = Clusters::new();
    for refusal in [vec![Move::Reset(REFUSED_STREAM)], vec![Move::GoAway(0, NO_ERROR), Move::Close]] {
        for (method, body) in REQUESTS {
            let first = refusal.clone();
            let origin = FrameOrigin::start(None, move |arrival| match arrival {
                Arrival { connection: 0, before: 0 } => first.clone(),
                _ => vec![Move::Answer],
            });
            let proxy = proxy(&clusters, &origin);
            let what = format!("{refusal:?}, {method} with {} bytes", body.len());

            assert_eq!((ask(&proxy, method, body), origin.requests()), (200, 2), "{what}");
            eventually(PATIENCE, &format!("{what} arrives whole"), || origin.data(1) == body);
        }
    }
}

#[test]
fn what_the_peer_may_have_processed_is_not() {
    let clusters = Clusters::new();
    for end in [vec![Move::Reset(INTERNAL_ERROR)], vec![Move::GoAway(1, NO_ERROR), Move::Close], vec![Move::Close]] {
        for (method, body) in REQUESTS.into_iter().skip(1) {
            let script = end.clone();
            let origin = FrameOrigin::start(None, move |_| script.clone());
            let proxy = proxy(&clusters, &origin);

            assert_eq!((ask(&proxy, method, body), origin.requests()), (502, 1), "{end:?}, {method}");
        }
    }
}

#[test]
fn a_peer_that_refuses_everything_is_asked_twice() {
    let clusters = Clusters::new();
    let origin = FrameOrigin::start(None, |_| vec![Move::Reset(REFUSED_STREAM)]);
    let proxy = proxy(&clusters, &origin);

    for (method, body) in REQUESTS {
        let before = origin.requests();
        assert_eq!((ask(&proxy, method, body), origin.requests() - before), (502, 2), "{method}");
    }
}

/// The first goodbye of two says that all streams so far will be answered, and one of them takes its time.
#[test]
fn a_connection_that_has_said_goodbye_gets_no_new_request_but_finishes_the_old_ones() {
    let clusters = Clusters::new();
    let origin = FrameOrigin::start(None, |arrival| match arrival {
        Arrival { connection: 0, before: 0 } => vec![],
        Arrival { connection: 0, before: 1 } => vec![Move::GoAway(ALL, NO_ERROR), Move::Answer],
        _ => vec![Move::Answer],
    });
    let proxy = proxy(&clusters, &origin);
    let mut slow = proxy.client();
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    eventually(PATIENCE, "the first request is there", || origin.requests() == 1);

    for _ in 0..20 {
        assert_eq!(ask(&proxy, "POST", b""), 200);
    }

    assert_eq!(origin.connections(), 2, "the first one has said goodbye, the second one serves");
    assert!(!slow.is_closed_within(Duration::from_millis(1)), "the old request goes on");
}

#[test]
fn no_more_streams_are_opened_than_the_peer_allows() {
    let clusters = Clusters::new();
    let origin = FrameOrigin::start(Some(2), |_| vec![]);
    let proxy = proxy(&clusters, &origin);
    let mut waiting = Vec::new();
    for number in 1..=6 {
        let mut client = proxy.client();
        client.send(format!("GET /{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        waiting.push(client);
        eventually(PATIENCE, "it is there", || origin.requests() == number);
    }

    assert_eq!((origin.connections(), origin.most_streams()), (3, 2));
}

#[test]
fn a_connection_that_ends_is_followed_by_another() {
    let clusters = Clusters::new();
    let origin = FrameOrigin::start(None, |_| vec![Move::Answer, Move::Close]);
    let proxy = proxy(&clusters, &origin);

    for _ in 0..20 {
        assert_eq!(ask(&proxy, "GET", b""), 200);
    }
}

/// NO_ERROR says only that the request's rest is not wanted, and only behind a whole response (RFC 9113, 8.1).
#[test]
fn a_response_whose_stream_is_reset_before_its_end_is_never_passed_on_as_whole() {
    let clusters = Clusters::new();
    for code in [NO_ERROR, INTERNAL_ERROR, CANCEL] {
        for body in [vec![], vec![Move::Data(b"half of it")], vec![Move::Data(b"half"), Move::Data(b" of it")]] {
            let script = [vec![Move::Head(200)], body, vec![Move::Reset(code)]].concat();
            let what = format!("{script:?}");
            let origin = FrameOrigin::start(None, move |_| script.clone());
            let proxy = proxy(&clusters, &origin);
            let http2 = Http2::plain(proxy.addresses.http);

            for _ in 0..5 {
                let one = proxy.client().exchange("GET", HOST, "/", &[], b"");
                assert!(!matches!(&one, Ok(response) if response.status == 200), "{what}: {one:?}");
                let two = http2.exchange(Request::get(format!("http://{HOST}/")).body(Bytes::new()).unwrap());
                assert!(!matches!(&two, Ok(response) if response.status == 200), "{what}: {two:?}");
            }
        }
    }
}

#[test]
fn a_whole_response_stays_whole_although_its_stream_is_reset() {
    let clusters = Clusters::new();
    for (end, trailers) in [(vec![Move::Last(b"whole")], 0), (vec![Move::Data(b"whole"), Move::Trailers], 1)] {
        for status in [200, 413] {
            let script = [vec![Move::Head(status)], end.clone(), vec![Move::Reset(NO_ERROR)]].concat();
            let what = format!("{script:?}");
            let origin = FrameOrigin::start(None, move |_| script.clone());
            let proxy = proxy(&clusters, &origin);
            let http2 = Http2::plain(proxy.addresses.http);

            for (method, body) in REQUESTS {
                let one = proxy.client().exchange(method, HOST, "/", &[("TE", "trailers")], body).unwrap();
                assert_eq!((one.status, one.text().as_str()), (status, "whole"), "{what}: {method}");
                let request = Request::builder().method(method).uri(format!("http://{HOST}/"));
                let two = http2.exchange(request.body(Bytes::from_static(body)).unwrap()).unwrap();
                let found = (two.status, two.text(), two.trailers.len());
                assert_eq!(found, (status, "whole".to_owned(), trailers), "{what}: {method}");
            }
        }
    }
}
