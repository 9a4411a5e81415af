//! Whether a proxy does the job, asked before it is measured: a figure of one that does less would be worth nothing.

use super::client::Client;
use super::ground::{Ground, NEW_HOST, OLD_HOST, Ports};

/// How many requests are drawn on each listener.
const DRAWN: u32 = 150;

/// How many requests a proof sends.
pub const REQUESTS: u64 = 2 * (DRAWN as u64 + 1);

/// Says what is wrong.
pub fn prove(ground: &Ground, ports: Ports) -> Result<(), String> {
    let mut new = 0;
    for (port, scheme) in [(ports.plain, "http"), (ports.tls, "https")] {
        let tls = (scheme == "https").then(|| (ground.trust(), OLD_HOST));
        let failed = |error: std::io::Error| format!("it does not do the job by {scheme}: {error}");
        let mut client = Client::connect(port, tls).map_err(failed)?;
        let mut ask = |pin| client.get("/echo", pin).map_err(failed);

        let pinned = ask(Some("new"))?;
        let expected = format!("host={NEW_HOST} sni={NEW_HOST} for=");
        if pinned.status != 200 || pinned.cluster != "new" || !pinned.body.starts_with(&expected) {
            return Err(format!(
                "the header rule for new led to {} {}: {}",
                pinned.status, pinned.cluster, pinned.body
            ));
        }
        // Replaced, or extended by one; Envoy names its own address in the place of one of loopback.
        let has_address = field(&pinned.body, "for").split(',').next_back().is_some_and(|last| last.contains('.'));
        if !has_address || field(&pinned.body, "proto") != scheme {
            return Err(format!("new was not told the client's address and scheme: {}", pinned.body));
        }
        let mut oldest = 0;
        for _ in 0..DRAWN {
            let drawn = ask(None)?;
            if drawn.status != 200 {
                return Err(format!("status {}", drawn.status));
            }
            if drawn.cluster == "new" {
                new += 1;
            } else if field(&drawn.body, "host") != OLD_HOST {
                return Err(format!("old was asked for another host: {}", drawn.body));
            }
            oldest = oldest.max(field(&drawn.body, "nth").parse().unwrap_or(0));
        }
        if oldest < 10 {
            return Err("connections to the clusters are not kept".to_owned());
        }
    }
    // A fifth, give or take four and a half standard deviations.
    let (share, tolerance) = (f64::from(new) / f64::from(2 * DRAWN), 4.5 * (0.2 * 0.8 / f64::from(2 * DRAWN)).sqrt());
    if (share - 0.2).abs() > tolerance {
        return Err(format!("{:.0} % went to new, not 20 %", share * 100.0));
    }
    Ok(())
}

/// A value of `name=value …`, up to the next name.
pub fn field<'a>(body: &'a str, name: &str) -> &'a str {
    let Some((_, rest)) = body.split_once(&format!("{name}=")) else { return "" };
    let end = rest.find('=').map_or(rest.len(), |equals| rest[..equals].rfind(' ').unwrap_or(equals));
    rest[..end].trim()
}
