//! What must hold for any bytes, a function for each reader of bytes that somebody else wrote. The fuzz targets call them,
//! and so does an ordinary test with the corpus.

mod client_hello;
mod config;
mod forwarded;
mod head;
mod headers;
mod proxy_protocol;
mod sticky_key;

pub use client_hello::client_hello;
pub use config::config;
pub use forwarded::forwarded;
pub use headers::headers;
pub use proxy_protocol::proxy_protocol;
pub use sticky_key::sticky_key;

/// What takes any bytes and panics where a promise is broken.
pub type Check = fn(&[u8]);

/// Every check with the name of its target and its corpus.
pub const ALL: [(&str, Check); 6] = [
    ("config", config),
    ("proxy_protocol", proxy_protocol),
    ("client_hello", client_hello),
    ("sticky_key", sticky_key),
    ("forwarded", forwarded),
    ("headers", headers),
];

/// A few ends of a text, its own among them.
fn ends(length: usize) -> impl Iterator<Item = usize> {
    let step = (length / 64).max(1);
    (0..length).step_by(step).chain([length])
}
