//! migration-proxy.

pub mod config;
pub mod routing;
pub mod telemetry;
pub mod upstream;
