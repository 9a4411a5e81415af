//! What we tell the world: metrics, access log, audit and control lines.

pub mod labels;
