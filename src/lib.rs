//! migration-proxy.

pub mod config;
pub mod proxy;
pub mod routing;
pub mod telemetry;
