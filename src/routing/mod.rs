//! What is served now: services, their rules and shares, and the decision of a request.

pub mod bucket;
pub mod client_address;
pub mod decide;
pub mod explain;
pub mod header_plan;
pub mod live;
pub mod networks;
pub mod overrides;
pub mod rules;
pub mod safe_mode;
pub mod service;
pub mod snapshot;
pub mod sticky;
pub mod table;
pub mod weight;
