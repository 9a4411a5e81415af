//! All of it runs on the control runtime, where it may be slow, may allocate and may fail.

pub mod candidate;
pub mod expiry;
pub mod mounts;
pub mod reload;
pub mod restart;
pub mod status;
pub mod watch;

pub use candidate::{Candidate, Compiled, open};
pub use reload::{Parts, ReloadHandle, Reloader};
pub use status::Status;
pub use watch::Watch;
