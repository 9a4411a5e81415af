//! What changes while requests run: the configuration file and everything that it names, and what is reported about it.
//! All of it runs on the control runtime, where it may be slow, may allocate and may fail.

pub mod announcement;
#[cfg(feature = "kubernetes")]
pub mod api_server;
pub mod backend;
pub mod candidate;
pub mod change;
pub mod differences;
pub mod examine;
pub mod expiry;
pub mod fleet;
pub mod history;
pub mod keeper;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod last_good;
pub mod listeners;
pub mod lost_hosts;
pub mod merge;
pub mod mounts;
pub mod opening;
pub mod peers;
pub mod preview;
pub mod reload;
pub mod report;
pub mod restart;
pub mod rollback;
pub mod shared;
pub mod sharing;
pub mod state;
pub mod state_file;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokens;
pub mod watch;
