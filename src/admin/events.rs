//! Server-sent events for the page: `/status` when it has changed, and the last hour minute by minute. What is told is made
//! once for all readers, and only while there are readers. Nothing waits for a slow one: it is told what is so when it
//! can take it, and its connection ends with its time like any other.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, Response, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::answer::{self, Body};
use super::{AdminState, LONGEST_CONNECTION};
use crate::control::report::StatusReport;
use crate::shutdown::Drain;
use crate::telemetry::window::Windows;

/// Readers at once; a page that is refused asks for `/status` now and then instead.
const READERS: usize = 32;

/// How often we look. A change of state is told at once, numbers are told every second time.
const BEAT: Duration = Duration::from_secs(1);
const BEATS_OF_NUMBERS: u64 = 2;

/// A reader comes back after this time, so that its connection ends between two events and not in one.
const LONGEST_STREAM: Duration = LONGEST_CONNECTION.saturating_sub(Duration::from_secs(20));

/// What is told to all readers.
#[derive(Debug)]
pub struct Events {
    places: Arc<Semaphore>,
    start: Instant,
    latest: Mutex<Latest>,
}

/// What is so. Numbers count versions.
#[derive(Clone, Debug, Default)]
struct Latest {
    /// The beat in which it was made; `None` before the first.
    beat: Option<u64>,
    status: Versioned,
    /// The same without what passes by itself, then without what changes with every request.
    shown: Option<Arc<[StatusReport; 2]>>,
    state_version: u64,
    series: Versioned,
}

#[derive(Clone, Debug, Default)]
struct Versioned {
    json: Bytes,
    version: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(READERS)), start: Instant::now(), latest: Mutex::default() }
    }
}

impl Events {
    fn beat(&self, now: Instant) -> u64 {
        (now - self.start).as_secs() / BEAT.as_secs()
    }

    /// What is so in this beat, made by whoever asks first.
    fn latest(&self, beat: u64, state: &AdminState) -> Latest {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.beat != Some(beat) {
            latest.beat = Some(beat);
            let report = state.reporter().report();
            let status = json(&report);
            let shown = [without_time(report.clone()), without_numbers(report)];
            let before = latest.shown.take();
            if before.as_ref().is_none_or(|before| before[0] != shown[0]) {
                latest.status = Versioned { json: status, version: latest.status.version + 1 };
            }
            latest.state_version += u64::from(before.is_none_or(|before| before[1] != shown[1]));
            latest.shown = Some(Arc::new(shown));
            let series = json(&state.status.series());
            if latest.series.json != series {
                latest.series = Versioned { json: series, version: latest.series.version + 1 };
            }
        }
        latest.clone()
    }
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("our reports have names as keys and fail nowhere").into()
}

/// How far a window reaches back grows without anything happening.
fn without_time(mut report: StatusReport) -> StatusReport {
    for service in &mut report.services {
        let Windows { one, five, sixty } = &mut service.windows;
        for sides in [one, five, sixty] {
            sides.seconds = 0;
        }
    }
    report
}

/// What is left says whether something has happened.
fn without_numbers(mut report: StatusReport) -> StatusReport {
    for service in &mut report.services {
        service.windows = Windows::default();
        service.open_on_new = 0;
    }
    for replica in &mut report.replicas {
        replica.age = 0.0;
    }
    // It counts seconds, and `replicas` says the same without them.
    report.degraded.retain(|text| !text.starts_with("replica "));
    report
}

/// Answers `GET /api/v1/events`.
pub(super) fn answer(state: &Arc<AdminState>, drain: &Drain, method: &Method) -> Response<Body> {
    if method == Method::HEAD {
        return answer::events(None);
    }
    let Ok(place) = state.events.places.clone().try_acquire_owned() else {
        let text = format!("{READERS} readers are told already: ask for /status instead");
        let mut response = answer::error(StatusCode::SERVICE_UNAVAILABLE, &text);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("30"));
        return response;
    };
    let reader = Reader {
        state: state.clone(),
        drain: drain.clone(),
        end: Instant::now() + LONGEST_STREAM,
        told: None,
        _place: place,
    };
    answer::events(Some(Stream(Box::pin(reader.next()))))
}

/// The events of one reader.
pub(super) struct Stream(Pin<Box<dyn Future<Output = Option<Next>> + Send>>);

/// What is told next, and the reader for what comes after it.
type Next = (Reader, Bytes);

impl Stream {
    /// The next events; `None` is the end.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.0.as_mut().poll(context).map(|next| {
            let (reader, events) = next?;
            self.0 = Box::pin(reader.next());
            Some(events)
        })
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Stream")
    }
}

pub(super) struct Reader {
    state: Arc<AdminState>,
    drain: Drain,
    end: Instant,
    told: Option<Told>,
    _place: OwnedSemaphorePermit,
}

/// The versions that a reader knows.
#[derive(Clone, Copy, Debug)]
struct Told {
    beat: u64,
    status: u64,
    state: u64,
    series: u64,
}

impl Reader {
    /// Waits for something to tell; `None` when the time is over or the process ends.
    async fn next(mut self) -> Option<Next> {
        loop {
            let events = &self.state.events;
            if self.told.is_some() {
                let beats = u32::try_from(events.beat(Instant::now()) + 1).unwrap_or(u32::MAX);
                tokio::select! {
                    () = self.drain.started() => return None,
                    () = sleep_until(events.start + BEAT * beats) => {}
                }
            }
            let now = Instant::now();
            if now >= self.end {
                return None;
            }
            let beat = events.beat(now);
            let latest = events.latest(beat, &self.state);
            let (text, told) = tell(&latest, beat, self.told);
            if let Some(text) = text {
                self.told = Some(told);
                return Some((self, text));
            }
        }
    }
}

/// What is news to somebody who knows this; `None` when nothing is, or nothing that could not wait.
fn tell(latest: &Latest, beat: u64, known: Option<Told>) -> (Option<Bytes>, Told) {
    let (status, state, series) = (latest.status.version, latest.state_version, latest.series.version);
    let told = Told { beat, status, state, series };
    let mut text = Vec::new();
    if known.is_none() {
        text.extend_from_slice(b"retry: 1000\n\n");
    }
    if known.is_none_or(|known| known.series != series) {
        push(&mut text, "series", &latest.series.json);
    }
    let is_time = known.is_none_or(|known| known.state != state || beat >= known.beat + BEATS_OF_NUMBERS);
    match known {
        _ if !is_time => {}
        Some(known) if known.status == status => push(&mut text, "same", b"{}"),
        _ => push(&mut text, "status", &latest.status.json),
    }
    if is_time {
        return (Some(text.into()), told);
    }
    // The series alone must not delay the numbers.
    let kept = known.map_or(told, |known| Told { series, ..known });
    ((!text.is_empty()).then(|| text.into()), kept)
}

/// The time goes as the event's id: the reader's clock may be another one.
fn push(text: &mut Vec<u8>, event: &str, data: &[u8]) {
    text.extend_from_slice(format!("id: {}\nevent: {event}\ndata: ", Timestamp::now().as_millisecond()).as_bytes());
    text.extend_from_slice(data);
    text.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latest(status: u64, state: u64, series: u64) -> Latest {
        let versioned = |json: &'static str, version| Versioned { json: json.into(), version };
        Latest {
            beat: Some(0),
            status: versioned("{1}", status),
            shown: None,
            state_version: state,
            series: versioned("{2}", series),
        }
    }

    #[test]
    fn news_is_told_at_once_and_numbers_every_second_beat() {
        let known = Told { beat: 10, status: 4, state: 3, series: 2 };
        for (what, latest, beat, known, expected) in [
            ("all to a new reader", latest(4, 3, 2), 10, None, &["series", "status"][..]),
            ("numbers wait", latest(5, 3, 2), 11, Some(known), &[]),
            ("numbers come", latest(5, 3, 2), 12, Some(known), &["status"]),
            ("a state does not wait", latest(5, 4, 2), 11, Some(known), &["status"]),
            ("a minute is over", latest(4, 3, 3), 11, Some(known), &["series"]),
            ("nothing happened", latest(4, 3, 2), 12, Some(known), &["same"]),
        ] {
            let (text, told) = tell(&latest, beat, known);
            let text = text.map_or(String::new(), |text| String::from_utf8(text.to_vec()).unwrap());
            let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
            assert_eq!(events, expected, "{what}");
            assert_eq!(text.contains("retry: 1000"), known.is_none(), "{what}");
            assert_eq!(told.series, latest.series.version, "{what}");
            let is_series_alone = events == ["series"] || events.is_empty();
            assert_eq!(told.beat, if is_series_alone { 10 } else { beat }, "{what}");
        }
    }
}
