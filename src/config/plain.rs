//! YAML documents of our own, such as the state: written and read by types, without places.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The text of a value.
///
/// # Errors
///
/// The value has a shape that YAML cannot take.
pub fn to_text(value: &impl Serialize) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}

/// The value of a text.
///
/// # Errors
///
/// The text is no YAML, or says something else; one line.
pub fn from_text<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}
