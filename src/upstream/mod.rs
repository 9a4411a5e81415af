//! One backend of one service.

pub mod breaker;
mod ratio;
