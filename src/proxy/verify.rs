//! The same request to both clusters, and what differs. A safe request whose answers differ goes to old once more: what
//! differs there too is no difference between the clusters.

use http::StatusCode;
use http::header::HOST;
use serde::{Deserialize, Serialize};

use super::compare::{Difference, Side, compare, mark_own};
use super::inquiry::{Answered, Fault, Inquiry, ask};
use super::is_safe;
use crate::config::{Cluster, HostPattern};
use crate::routing::service::Service;
use crate::upstream::probe::one_host;

/// As much of each body is compared.
pub const BODY: usize = 1 << 20;

/// Two answers to one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Nothing differs but what differs from one answer to the next.
    pub equal: bool,
    /// Everything that differs.
    pub differences: Vec<Difference>,
    /// What was asked.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// What old answered.
    pub old: Answer,
    /// What new answered.
    pub new: Answer,
    /// What the comparison does not cover.
    pub notes: Vec<String>,
}

/// One answer in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// `None`: there is none.
    pub status: Option<u16>,
    /// Bytes of the body that were read.
    pub bytes: usize,
    /// Seconds, connecting included.
    pub seconds: f64,
    /// Why there is no answer.
    pub error: Option<String>,
}

impl Answer {
    fn of(answered: &Result<Answered, Fault>) -> Self {
        match answered {
            Ok(answered) => Self {
                status: Some(answered.status().as_u16()),
                bytes: answered.reply.body.len(),
                seconds: answered.taken.as_secs_f64(),
                error: None,
            },
            Err(fault) => Self { error: Some(fault.to_string()), ..Self::default() },
        }
    }

    fn words(&self) -> String {
        self.error.clone().unwrap_or_else(|| self.status.map_or_else(String::new, |status| format!("status {status}")))
    }
}

/// Asks both clusters at the same time and compares their answers.
pub async fn verify(service: &Service, inquiry: &Inquiry) -> Verdict {
    let (old, new) = tokio::join!(ask(service, Cluster::Old, inquiry, BODY), ask(service, Cluster::New, inquiry, BODY));
    let (in_short_old, in_short_new) = (Answer::of(&old), Answer::of(&new));
    let mut notes: Vec<String> = made_up(service, inquiry).into_iter().collect();
    let differences = match (&old, &new) {
        (Ok(old), Ok(new)) => {
            notes.extend(remarks(old, new));
            let mut found = differences(service, old, new);
            if found.iter().any(|found| !found.volatile)
                && is_safe(&inquiry.method)
                && let Ok(again) = ask(service, Cluster::Old, inquiry, BODY).await
            {
                mark_own(&mut found, &differences(service, old, &again));
            }
            found
        }
        _ => vec![Difference::of_answers(in_short_old.words(), in_short_new.words())],
    };
    Verdict {
        equal: differences.iter().all(|found| found.volatile),
        differences,
        method: inquiry.method.to_string(),
        path: inquiry.target.to_string(),
        old: in_short_old,
        new: in_short_new,
        notes,
    }
}

fn differences(service: &Service, old: &Answered, new: &Answered) -> Vec<Difference> {
    // Of two beginnings nothing is known beyond the end of the shorter.
    let both_cut = !old.reply.is_whole && !new.reply.is_whole;
    let shorter = old.reply.body.len().min(new.reply.body.len());
    let body = |whole: &[u8]| if both_cut { shorter } else { whole.len() };
    let (old_body, new_body) = (&old.reply.body[..body(&old.reply.body)], &new.reply.body[..body(&new.reply.body)]);
    let old_host = service.config.old_host.first().map(one_host).unwrap_or_default();
    compare(
        Side { head: &old.reply.head, body: old_body },
        Side { head: &new.reply.head, body: new_body },
        &service.headers.new_host,
        &old_host,
        &service.headers.request_id,
    )
}

/// A wildcard names no host to ask for.
fn made_up(service: &Service, inquiry: &Inquiry) -> Option<String> {
    let pattern = service.config.old_host.first()?;
    let is_made_up = matches!(pattern, HostPattern::Wildcard(_)) && !inquiry.fields.contains_key(HOST);
    is_made_up.then(|| format!("asked for the host {}; another: --header 'Host: \u{2026}'", one_host(pattern)))
}

fn remarks(old: &Answered, new: &Answered) -> Vec<String> {
    let mut notes = Vec::new();
    if !old.reply.is_whole || !new.reply.is_whole {
        let kibibytes = BODY / 1024;
        notes.push(format!(
            "a body is longer than {kibibytes} KiB or did not end in time: only its beginning is compared"
        ));
    }
    let redirects = |answered: &Answered| answered.status().is_redirection();
    if redirects(old) && redirects(new) {
        notes.push(
            "both redirect; if they want TLS, say that the client speaks it: --header 'X-Forwarded-Proto: https'"
                .to_owned(),
        );
    }
    if old.status() == StatusCode::UNAUTHORIZED && new.status() == StatusCode::UNAUTHORIZED {
        notes.push("both want to know who asks: --header 'Authorization: …' or 'Cookie: …'".to_owned());
    }
    if new.came_back() || old.came_back() {
        notes.push("the request came back to a proxy like this one: run doctor".to_owned());
    }
    notes
}
