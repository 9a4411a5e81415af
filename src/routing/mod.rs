//! What is served now.

pub mod header_plan;
