//! One request.

pub mod headers;
pub mod hop_by_hop;
pub mod host;
pub mod rewrite;
pub mod sender;
