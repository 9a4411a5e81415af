//! Variables inside scalars: `${NAME}` from the environment, `{NN}` from an expanded template, and in `headers.*` the
//! request's own, `${client_ip}`. One pass from left to right, so that what is put in is never read again.

use std::borrow::Cow;
use std::rc::Rc;

use super::decode::suggestion;
use super::model::{Environment, Template, TemplatePart};
use super::values::{Parsed, Wrong};

/// The variables of a template entry.
pub(super) type Variables = Vec<(Rc<str>, String)>;

const REQUEST_VARIABLES: [(&str, TemplatePart); 5] = [
    ("client_ip", TemplatePart::ClientIp),
    ("old_host", TemplatePart::OldHost),
    ("new_host", TemplatePart::NewHost),
    ("request_id", TemplatePart::RequestId),
    ("target", TemplatePart::Target),
];

/// The text of an ordinary scalar.
pub(super) fn text<'t>(raw: &'t str, environment: &Environment, variables: &Variables) -> Parsed<Cow<'t, str>> {
    if !raw.contains('$') && (variables.is_empty() || !raw.contains('{')) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find(['$', '{']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match reference(rest)? {
            Some((Name::Environment(name, default), end)) => {
                out.push_str(look_up(name, default, environment)?);
                rest = &rest[end..];
            }
            Some((Name::Request(name), _)) => {
                return Err(Wrong::new(format!("${{{name}}} is a request's variable and exists only in headers"))
                    .help("names of the environment are written in upper case"));
            }
            None => rest = other(rest, variables, &mut out),
        }
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

/// The value of a header operation.
pub(super) fn template(raw: &str, environment: &Environment, variables: &Variables) -> Parsed<Template> {
    let (mut parts, mut out) = (Vec::new(), String::new());
    let mut rest = raw;
    while let Some(at) = rest.find(['$', '{']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        match reference(rest)? {
            Some((Name::Environment(name, default), end)) => {
                out.push_str(look_up(name, default, environment)?);
                rest = &rest[end..];
            }
            Some((Name::Request(name), end)) => {
                if !out.is_empty() {
                    parts.push(TemplatePart::Text(std::mem::take(&mut out)));
                }
                parts.push(request_variable(name)?);
                rest = &rest[end..];
            }
            None if rest.starts_with("${") => {
                return Err(Wrong::new("${ begins no variable").help("write $$ for a dollar sign"));
            }
            None => rest = other(rest, variables, &mut out),
        }
    }
    out.push_str(rest);
    if !out.is_empty() {
        parts.push(TemplatePart::Text(out));
    }
    Ok(Template(parts))
}

enum Name<'t> {
    Environment(&'t str, Option<&'t str>),
    Request(&'t str),
}

/// The `${…}` that the text begins with, and where it ends; `None` when it begins with something else.
fn reference(text: &str) -> Parsed<Option<(Name<'_>, usize)>> {
    let Some(inside) = text.strip_prefix("${") else { return Ok(None) };
    let length = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
    let (name, after) = inside.split_at(length);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(None);
    }
    let (default, end) = if after.starts_with('}') {
        (None, 3 + length)
    } else if let Some((default, _)) = after.strip_prefix(":-").and_then(|default| default.split_once('}')) {
        (Some(default), 5 + length + default.len())
    } else {
        return Err(Wrong::new(format!("${{{name} is not closed")).help(format!("write ${{{name}}} or ${{{name}:-x}}")));
    };
    let upper = !name.contains(|c: char| c.is_ascii_lowercase());
    match (upper, default) {
        (true, default) => Ok(Some((Name::Environment(name, default), end))),
        (false, None) => Ok(Some((Name::Request(name), end))),
        (false, Some(_)) => {
            Err(Wrong::new(format!("${{{name}}} takes no default"))
                .help("only names of the environment do, in upper case"))
        }
    }
}

fn look_up<'a>(name: &str, default: Option<&'a str>, environment: &'a Environment) -> Parsed<&'a str> {
    match (environment.get(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default),
        (None, None) => Err(Wrong::new(format!("the environment has no variable {name}"))
            .help(format!("set it, or give a default: ${{{name}:-x}}"))),
    }
}

fn request_variable(name: &str) -> Parsed<TemplatePart> {
    let known = REQUEST_VARIABLES.into_iter().find(|(known, _)| *known == name);
    known.map(|(_, part)| part).ok_or_else(|| {
        let names = REQUEST_VARIABLES.map(|(name, _)| name);
        Wrong::new(format!("unknown variable ${{{name}}}")).help(suggestion(name, &names))
    })
}

/// A `$` or `{` that begins no `${…}`: a variable of the template, or itself.
fn other<'t>(text: &'t str, variables: &Variables, out: &mut String) -> &'t str {
    let inside = text.strip_prefix('{').and_then(|inside| inside.split_once('}'));
    if let Some((name, after)) = inside
        && let Some((_, value)) = variables.iter().find(|(known, _)| &**known == name)
    {
        out.push_str(value);
        return after;
    }
    out.push_str(&text[..1]);
    &text[1..]
}
