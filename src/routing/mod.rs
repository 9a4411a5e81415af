//! What is served now: which cluster a request goes to, and why. Everything here is decided from a compiled
//! configuration, the facts of one request and numbers that the caller draws; no file in this folder touches a socket.

pub mod bucket;
pub mod decide;
pub mod explain;
pub mod networks;
pub mod rules;
pub mod safe_mode;
pub mod sticky;
pub mod table;
pub mod weight;
