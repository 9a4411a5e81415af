//! Bytes, no HTTP: sockets that listen, what stands in front of a connection, and streams that are plain or TLS.

pub mod client_hello;
pub mod listener;
pub mod peek;
pub mod proxy_protocol;
pub mod relay;
pub mod stream;
pub mod watched;
