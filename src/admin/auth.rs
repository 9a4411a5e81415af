//! Who may write. Without `admin.token_file` only this machine may; with it, whoever holds a token. No web page can make a
//! browser write: the media type asks it first, and the Host of a request from this machine is this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, StatusCode};

use crate::config::Config;
use crate::control::tokens::Tokens;
use crate::telemetry::audit::Actor;

/// A refusal: the status and one line.
pub(super) type Refused = (StatusCode, String);

/// Who asks, if they may write.
pub(super) fn actor(config: &Config, peer: IpAddr, headers: &HeaderMap) -> Result<Actor, Refused> {
    let from_here = is_here(peer);
    let actor = match &config.admin.token_file {
        Some(file) => {
            let tokens = Tokens::read(file).map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error))?;
            let owner = bearer(headers).and_then(|token| tokens.owner(token));
            let owner =
                owner.ok_or_else(|| (StatusCode::UNAUTHORIZED, "this needs a token: --token-file".to_owned()))?;
            Actor::Token(owner.into())
        }
        None if from_here => Actor::Loopback,
        None => {
            let text = "only 127.0.0.1 and ::1 may write: use kubectl port-forward, or set admin.token_file";
            return Err((StatusCode::FORBIDDEN, text.to_owned()));
        }
    };
    if from_here && !names_here(headers) {
        let text = "the Host of a request from this machine must be this machine".to_owned();
        return Err((StatusCode::MISDIRECTED_REQUEST, text));
    }
    Ok(actor)
}

/// Whether the body is what it must be.
pub(super) fn check_type(headers: &HeaderMap, wanted: &str) -> Result<(), Refused> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("this needs Content-Type: {wanted}")))
}

/// Only these two: anything else of 127/8 may be a proxy on this machine.
fn is_here(peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    peer == Ipv4Addr::LOCALHOST || peer == Ipv6Addr::LOCALHOST
}

fn names_here(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_here)
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::control::testing::{Bench, TEXT};

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[tokio::test]
    async fn without_tokens_only_this_machine_writes_and_only_to_itself() {
        let bench = Bench::start(TEXT);
        let snapshot = bench.live.snapshot();
        for (peer, host, expected) in [
            ("127.0.0.1", "127.0.0.1:8080", 200),
            ("127.0.0.1", "localhost:8080", 200),
            ("::1", "[::1]:8080", 200),
            ("::ffff:127.0.0.1", "LOCALHOST", 200),
            ("127.0.0.2", "127.0.0.1:8080", 403),
            ("10.0.0.1", "10.0.0.9:8080", 403),
            ("127.0.0.1", "evil.example", 421),
            ("127.0.0.1", "127.0.0.1.evil.example:8080", 421),
            ("127.0.0.1", "127.0.0.9:8080", 421),
        ] {
            let allowed = actor(&snapshot.config, peer.parse().unwrap(), &headers(&[(HOST, host)]));
            assert_eq!(allowed.as_ref().map_or_else(|(status, _)| status.as_u16(), |_| 200), expected, "{peer} {host}");
        }
        let two = [headers(&[(HOST, "localhost")]), headers(&[(HOST, "localhost")])].into_iter().flatten();
        let mut twice = HeaderMap::new();
        two.for_each(|(_, value)| {
            twice.append(HOST, value);
        });
        assert!(actor(&snapshot.config, "127.0.0.1".parse().unwrap(), &twice).is_err());
    }

    #[tokio::test]
    async fn with_tokens_everybody_needs_one() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("tokens"), "anna:s3cret-1234\n").unwrap();
        let bench = Bench::over(directory, &format!("admin: {{token_file: DIR/tokens}}{TEXT}")).unwrap();
        let snapshot = bench.live.snapshot();
        let ask = |peer: &str, authorization| {
            let fields = headers(&[(HOST, "localhost"), (AUTHORIZATION, authorization)]);
            actor(&snapshot.config, peer.parse().unwrap(), &fields)
        };

        assert_eq!(ask("10.0.0.1", "Bearer s3cret-1234"), Ok(Actor::Token("anna".into())));
        assert_eq!(ask("127.0.0.1", "bearer s3cret-1234"), Ok(Actor::Token("anna".into())));
        for wrong in ["Bearer s3cret-123", "Bearer anna:s3cret-1234", "Basic s3cret-1234", "Bearer ", ""] {
            assert_eq!(ask("127.0.0.1", wrong).unwrap_err().0, StatusCode::UNAUTHORIZED, "{wrong}");
        }
        std::fs::remove_file(bench.path("tokens")).unwrap();
        assert_eq!(ask("127.0.0.1", "Bearer s3cret-1234").unwrap_err().0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
