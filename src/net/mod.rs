//! Bytes, no HTTP: sockets that listen, and streams that are plain or TLS.

pub mod listener;
pub mod relay;
pub mod stream;
