//! What changes while requests run: the configuration file and everything that it names, and what is reported about it.
//! All of it runs on the control runtime, where it may be slow, may allocate and may fail.

pub mod candidate;
pub mod differences;
pub mod expiry;
pub mod history;
pub mod keeper;
pub mod last_good;
pub mod listeners;
pub mod lost_hosts;
pub mod mounts;
pub mod opening;
pub mod preview;
pub mod reload;
pub mod report;
pub mod restart;
pub mod rollback;
pub mod state;
pub mod state_file;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokens;
pub mod watch;
