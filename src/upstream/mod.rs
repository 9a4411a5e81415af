//! One cluster's backend of one service: where it is, its pooled connections, its breaker, and how much waits for it.

pub mod body;
pub mod breaker;
pub mod connect;
pub mod pool;
pub mod resolve;
