//! migration-proxy.

pub mod config;
pub mod net;
pub mod readiness;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod upstream;
