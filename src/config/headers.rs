//! `headers`: what is changed in the heads of requests and responses.

use http::{HeaderName, HeaderValue, header};

use super::decode::Section;
use super::model::*;
use super::tree::Entry;
use super::values::{self, Parsed, Wrong};

/// Fields that frame messages or that other parts of the proxy own.
const OWNED: [HeaderName; 5] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("cdn-loop"),
];

/// `headers`.
pub(super) fn read(s: &mut Section<'_, '_>) -> Headers {
    let default = Headers::default();
    let request_id = s.value("request_id", default.request_id, |text| {
        let name = values::header_name(text)?;
        if name == header::HOST || OWNED.contains(&name) {
            return Err(Wrong::new(format!("{name} cannot carry the request id")).help("write X-Request-Id"));
        }
        Ok(name)
    });
    Headers {
        request: s.section("request", |s| operations(s, &request_id)),
        response: s.section("response", |s| operations(s, &request_id)),
        rewrite_location: s.value("rewrite_location", default.rewrite_location, values::switch),
        rewrite_cookie_domain: s.value("rewrite_cookie_domain", default.rewrite_cookie_domain, values::switch),
        rewrite_origin: s.value("rewrite_origin", default.rewrite_origin, values::switch),
        strip: s.list("strip", |text| changeable(text, &request_id)).unwrap_or(default.strip),
        reveal: s.choice(
            "reveal",
            default.reveal,
            &[("off", Reveal::Off), ("trusted", Reveal::Trusted), ("always", Reveal::Always), ("on", Reveal::Trusted)],
        ),
        via: s.value("via", default.via, values::switch),
        request_id,
    }
}

fn operations(s: &mut Section<'_, '_>, request_id: &HeaderName) -> HeaderOperations {
    HeaderOperations {
        remove: s.list("remove", |text| changeable(text, request_id)).unwrap_or_default(),
        set: templates(s, "set", request_id),
        add: templates(s, "add", request_id),
    }
}

fn changeable(text: &str, request_id: &HeaderName) -> Parsed<HeaderName> {
    let name = values::header_name(text)?;
    let wrong = || Wrong::new(format!("{name} cannot be changed here"));
    if name == header::HOST {
        return Err(wrong().help("write old.host_header or new.host_header"));
    }
    if name == *request_id {
        return Err(wrong().help("headers.request_id names the field of the request id"));
    }
    if OWNED.contains(&name) { Err(wrong().help("the proxy sets it itself")) } else { Ok(name) }
}

fn templates(s: &mut Section<'_, '_>, key: &'static str, request_id: &HeaderName) -> Vec<(HeaderName, Template)> {
    let (entries, path) = (s.entries(key), s.path.key(key));
    let mut read = |entry: &Entry| {
        let path = path.key(&entry.key);
        let name = changeable(&entry.key, request_id);
        let name = name.map_err(|wrong| s.decoder.problems.error(entry.key_place, &path, wrong)).ok();
        let template = s.decoder.template(&entry.value, &path)?;
        let texts =
            template.0.iter().filter_map(|part| if let TemplatePart::Text(text) = part { Some(text) } else { None });
        if texts.into_iter().any(|text| HeaderValue::from_str(text).is_err()) {
            let wrong = Wrong::new("a header's value has no line breaks and no control characters");
            s.decoder.problems.error(entry.value.place, &path, wrong);
        }
        Some((name?, template))
    };
    entries.iter().filter_map(&mut read).collect()
}
