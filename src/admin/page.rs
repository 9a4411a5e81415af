//! The page at `/`: one document without anything from elsewhere. It fetches what this port tells everybody, and changes
//! nothing.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Response};
use sha2::{Digest as _, Sha256};

use super::answer::{self, Body};

const DOCUMENT: &str = include_str!("page.html");

/// Only the style and the script that are in the document may run, and neither can make markup out of text.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash("script"),
        hash("style"),
    );
    HeaderValue::from_str(&policy).expect("words and base64 are a valid field value")
});

/// The page.
pub(super) fn answer() -> Response<Body> {
    answer::page(DOCUMENT, &POLICY)
}

/// The hash of the one element of this name, as a policy writes it.
fn hash(element: &str) -> String {
    let (_, rest) = DOCUMENT.split_once(&format!("<{element}>")).expect("the document has this element");
    let (content, _) = rest.split_once(&format!("</{element}>")).expect("the element has an end");
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_small_and_whole() {
        assert!(DOCUMENT.len() < 100 << 10, "{}", DOCUMENT.len());
        for element in ["<script", "<style"] {
            assert_eq!(DOCUMENT.matches(element).count(), 1, "{element}");
        }
        for elsewhere in [" src=", "@import", "url(", "//cdn", "innerHTML", "insertAdjacentHTML", "document.write"] {
            assert!(!DOCUMENT.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn the_policy_names_the_parts_by_their_hash() {
        let policy = POLICY.to_str().unwrap();
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
