//! `POST /api/v1/services/NAME/verify`: the same request to old and new, and what differs.

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::AdminState;
use super::answer::{self, Body};
use super::auth::Refused;
use super::doctor::{place, unknown};
use crate::config::{self, Mode};
use crate::proxy::inquiry::Inquiry;
use crate::proxy::verify::verify;

/// The request that is compared.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    path: Option<String>,
    method: Option<String>,
    /// `{NAME: VALUE}`, or a list of `NAME: VALUE`, for fields that are sent several times.
    headers: Option<Value>,
}

/// Asks both clusters of this service.
pub(super) async fn answer(state: &AdminState, name: &str, question: Question) -> Result<Response<Body>, Refused> {
    let snapshot = state.live.snapshot();
    let service = snapshot.service(name).ok_or_else(|| unknown(&snapshot, name))?;
    if service.config.mode == Mode::Passthrough {
        let text = "mode: passthrough relays TLS as it is: there is no request to compare";
        return Err((StatusCode::UNPROCESSABLE_ENTITY, text.to_owned()));
    }
    let inquiry = question.inquiry().map_err(|text| (StatusCode::UNPROCESSABLE_ENTITY, text))?;
    if let Some(host) = inquiry.fields.get(HOST)
        && !host.to_str().is_ok_and(|host| snapshot.table.find(host).is_some_and(|found| found.name() == name))
    {
        return Err((StatusCode::UNPROCESSABLE_ENTITY, "headers: Host is no host of this service".to_owned()));
    }
    let _place = place().await;
    Ok(answer::json(StatusCode::OK, &Box::pin(verify(service, &inquiry)).await))
}

impl Question {
    fn inquiry(self) -> Result<Inquiry, String> {
        let path = self.path.unwrap_or_else(|| "/".to_owned());
        if !path.starts_with('/') {
            return Err("path: it begins with a slash".to_owned());
        }
        let target: PathAndQuery = path.parse().map_err(|_| "path: this is no path".to_owned())?;
        let method = self.method.map(|method| config::method(&method)).transpose()?.unwrap_or(Method::GET);
        if matches!(method, Method::CONNECT | Method::TRACE) {
            return Err(format!("method: {method} is not served"));
        }
        let mut inquiry = Inquiry::new(method, target);
        match self.headers {
            None => {}
            Some(Value::Object(fields)) => {
                for (name, value) in fields {
                    let value = value.as_str().ok_or("headers: values are texts")?.to_owned();
                    add(&mut inquiry.fields, &name, &value)?;
                }
            }
            Some(Value::Array(lines)) => {
                for line in lines {
                    let (name, value) =
                        line.as_str().and_then(|line| line.split_once(':')).ok_or("headers: NAME: VALUE")?;
                    add(&mut inquiry.fields, name, value)?;
                }
            }
            Some(_) => return Err("headers: {NAME: VALUE}, or a list of \"NAME: VALUE\"".to_owned()),
        }
        Ok(inquiry)
    }
}

fn add(fields: &mut HeaderMap, name: &str, value: &str) -> Result<(), String> {
    let field: HeaderName = name.trim().parse().map_err(|_| format!("headers: {name} is no name of a field"))?;
    let value = HeaderValue::try_from(value.trim())
        .map_err(|_| format!("headers: the value of {name} has bytes that no field can have"))?;
    // The map panics beyond its bound; a body is smaller than that, but not by much.
    fields.try_append(field, value).map(drop).map_err(|_| "headers: too many".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_question_is_a_request_or_a_reason_why_not() {
        let inquiry = |body: Value| serde_json::from_value::<Question>(body).unwrap().inquiry();
        for (body, words) in [
            (json!({"path": "x"}), "slash"),
            (json!({"path": "/a b"}), "no path"),
            (json!({"method": "G T"}), "method"),
            (json!({"method": "TRACE"}), "not served"),
            (json!({"headers": {"a b": "c"}}), "no name"),
            (json!({"headers": {"a": "b\nc"}}), "bytes"),
            (json!({"headers": {"a": 1}}), "texts"),
            (json!({"headers": ["a"]}), "NAME"),
            (json!({"headers": 1}), "list"),
        ] {
            let error = inquiry(body.clone()).unwrap_err();
            assert!(error.contains(words), "{body}: {error}");
        }
        let asked = inquiry(json!({"path": "/a?b=c", "headers": ["X-A: 1", "x-a: 2", "Cookie: a=b: c"]})).unwrap();
        assert_eq!((asked.method, asked.target.as_str()), (Method::GET, "/a?b=c"));
        assert_eq!(asked.fields.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(asked.fields["cookie"], "a=b: c");
    }
}
