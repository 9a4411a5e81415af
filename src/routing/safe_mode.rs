//! The switch that sends everything to the old clusters: one for all services and one for each. The file and an
//! operator's command turn it on independently, and it stays on until both have let go.

use std::sync::atomic::{AtomicU8, Ordering};

/// Who turned safe mode on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `safe_mode: on` in the file.
    File,
    /// The safe-mode command.
    Command,
}

impl Cause {
    fn bit(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Command => 2,
        }
    }
}

/// One switch.
#[derive(Debug, Default)]
pub struct SafeMode {
    causes: AtomicU8,
}

impl SafeMode {
    /// A switch as the file wants it.
    pub fn new(in_file: bool) -> Self {
        Self { causes: AtomicU8::new(if in_file { Cause::File.bit() } else { 0 }) }
    }

    /// Whether anybody turned it on.
    pub fn is_on(&self) -> bool {
        self.causes.load(Ordering::Relaxed) != 0
    }

    /// Whether this one turned it on.
    pub fn is_on_by(&self, cause: Cause) -> bool {
        self.causes.load(Ordering::Relaxed) & cause.bit() != 0
    }

    /// Turns it on or off for one cause; tells whether that changed anything, for the audit.
    pub fn set(&self, cause: Cause, on: bool) -> bool {
        let before = if on {
            self.causes.fetch_or(cause.bit(), Ordering::Relaxed)
        } else {
            self.causes.fetch_and(!cause.bit(), Ordering::Relaxed)
        };
        (before & cause.bit() != 0) != on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cause_does_not_end_what_the_other_began() {
        let switch = SafeMode::new(true);

        assert!(switch.set(Cause::Command, true));
        assert!(switch.set(Cause::File, false));
        assert!(switch.is_on());
        assert!(switch.is_on_by(Cause::Command) && !switch.is_on_by(Cause::File));

        assert!(switch.set(Cause::Command, false));
        assert!(!switch.set(Cause::Command, false));
        assert!(!switch.is_on());
    }
}
