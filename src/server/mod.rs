//! From sockets to [`Proxy::handle`](crate::proxy::Proxy::handle).

pub mod accept;
pub mod connection;
pub mod frames;
pub mod io;
pub mod noise;
pub mod passthrough;
pub mod resets;
pub mod worker;
