//! migration-proxy.

pub mod config;
pub mod telemetry;
