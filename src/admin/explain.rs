//! `GET /api/v1/explain`: what one request would get now, by the code that decides requests.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::answer::{self, Body};
use super::query;
use crate::routing::decide::Facts;
use crate::routing::explain::{About, Explanation, explain};
use crate::routing::live::Live;
use crate::routing::service::Service;

/// The request that is asked about.
#[derive(Debug)]
struct Question {
    host: String,
    path: String,
    method: Method,
    client: IpAddr,
    headers: HeaderMap,
}

/// Explains the request that the query describes.
pub(super) fn answer(live: &Live, query: &str) -> Response<Body> {
    let question = match Question::read(query) {
        Ok(question) => question,
        Err(text) => return answer::error(StatusCode::UNPROCESSABLE_ENTITY, &text),
    };
    let snapshot = live.snapshot();
    match snapshot.table.find(&question.host) {
        Some(service) => answer::json(StatusCode::OK, &question.explained_by(service)),
        None => answer::json(StatusCode::NOT_FOUND, &Explanation::unknown_host()),
    }
}

impl Question {
    fn read(query: &str) -> Result<Self, String> {
        let mut question = Self {
            host: String::new(),
            path: "/".to_owned(),
            method: Method::GET,
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            headers: HeaderMap::new(),
        };
        for pair in query::pairs(query) {
            let (name, value) = pair.ok_or("the query is not UTF-8")?;
            match name.as_str() {
                "host" => question.host = value,
                "path" => question.path = value,
                "method" => question.method = value.parse().map_err(|_| "method: this is no method")?,
                "client_ip" => question.client = value.parse().map_err(|_| "client_ip: this is no address")?,
                "header" => question.add_header(&value)?,
                _ => return Err("unknown parameter: host, path, method, client_ip and header are known".to_owned()),
            }
        }
        if question.host.is_empty() {
            return Err("host: which host does the client ask for?".to_owned());
        }
        if let Ok(host) = HeaderValue::try_from(&question.host) {
            question.headers.entry(HOST).or_insert(host);
        }
        Ok(question)
    }

    fn add_header(&mut self, field: &str) -> Result<(), String> {
        let (name, value) = field.split_once(':').ok_or("header: write NAME:VALUE")?;
        let name: HeaderName = name.trim().parse().map_err(|_| "header: this is no name of a field")?;
        let value =
            HeaderValue::try_from(value.trim()).map_err(|_| "header: a value has bytes that no field can have")?;
        // The map panics beyond its bound; the head of a query is smaller than that, but not by much.
        self.headers.try_append(name, value).map(drop).map_err(|_| "header: too many".to_owned())
    }

    fn explained_by(&self, service: &Service) -> Explanation {
        let config = &service.config;
        let backends: Vec<String> = config.old_backend.iter().map(ToString::to_string).collect();
        let about = About {
            service: service.name(),
            mode: config.mode,
            redirect_code: config.redirect_code,
            new_host: &config.new_host,
            old_upstream: &backends.join(", "),
            new_upstream: &config.new_backend.to_string(),
        };
        let facts = Facts {
            method: &self.method,
            path: self.path.split('?').next().unwrap_or_default(),
            headers: &self.headers,
            client: self.client.to_canonical(),
        };
        let availability = service.new.availability(Instant::now());
        let share = service.lasting.weight.effective();
        explain(&about, &service.rules, service.switches(), share, availability, &facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_needs_a_host_and_readable_values() {
        for (query, words) in [
            ("", "host"),
            ("host=", "host"),
            ("host=a&path=%ff", "UTF-8"),
            ("host=a&method=G%20T", "method"),
            ("host=a&client_ip=10.0.0", "client_ip"),
            ("host=a&header=X", "NAME:VALUE"),
            ("host=a&header=X+Y:1", "name"),
            ("host=a&header=X:a%0Ab", "bytes"),
            ("host=a&hots=b", "unknown parameter"),
        ] {
            let error = Question::read(query).unwrap_err();
            assert!(error.contains(words), "{query}: {error}");
        }
    }

    #[test]
    fn a_question_has_the_defaults_of_the_command() {
        let question = Question::read("host=a.example:80&header=X-U:%201%20&header=x-u:2").unwrap();

        assert_eq!((question.path.as_str(), &question.method), ("/", &Method::GET));
        assert!(question.client.is_unspecified());
        let values: Vec<_> = question.headers.get_all("x-u").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(question.headers[HOST], "a.example:80");
    }
}
