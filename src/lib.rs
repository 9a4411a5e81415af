//! migration-proxy.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod net;
pub mod proxy;
pub mod readiness;
pub mod routing;
pub mod server;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod upstream;
