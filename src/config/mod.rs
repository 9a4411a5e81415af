//! What the operator wrote: text in, a checked [`Config`] or every problem out.

pub mod model;
pub mod units;

pub use model::*;
pub use units::{Authority, HostPattern, Percent};
