//! Audit.
use super::SinkError;
use crate::config::Log;

/// Who changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A caller on this machine.
    Loopback,
    /// The holder of the token of this name.
    Token(Box<str>),
    /// An edit of the configuration file.
    File,
    /// The proxy itself.
    Process,
}

/// What was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The configuration.
    Config,
    /// Nothing: the change was refused.
    Refused,
}

/// A value before or after a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Written as it is.
    Number(f64),
    /// Written in quotes.
    Text(&'a str),
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What was changed.
    pub kind: Kind,
    /// Of which service.
    pub service: Option<&'a str>,
    /// What was before.
    pub from: Option<Value<'a>>,
    /// What is now.
    pub to: Option<Value<'a>>,
    /// Why, in the actor's words.
    pub reason: Option<&'a str>,
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {}

/// Checked settings that wait for [`Audit::install`].
#[derive(Debug)]
pub struct Prepared {}

impl Audit {
    /// Opens `log.audit_path`.
    pub fn new(_log: &Log) -> Result<Self, SinkError> {
        Ok(Self {})
    }
    /// Writes one change. `claimed` is who the caller says to be.
    pub fn record(&self, _event: &Event<'_>, _actor: &Actor, _claimed: Option<&str>) {}
    /// Opens what changed settings need, without using it yet.
    pub fn prepare(&self, _log: &Log) -> Result<Prepared, SinkError> {
        Ok(Prepared {})
    }
    /// Uses changed settings.
    pub fn install(&self, _prepared: Prepared) {}
    /// Opens the path anew.
    pub fn reopen(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
