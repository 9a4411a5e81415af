//! Whether traffic may come: yes once every part that was expected is up, and never again after [`Readiness::close`].
//! The state of an upstream is no part of it, so a dead cluster can never take the fleet out of its load balancer.

use std::sync::{Arc, Mutex, PoisonError};

/// What is still missing.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    missing: Vec<&'static str>,
    closed: bool,
}

/// Held by a part until it is up.
#[derive(Debug)]
pub struct Token {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Not ready before the token is dropped.
    pub fn expect(&self, name: &'static str) -> Token {
        self.locked(|state| state.missing.push(name));
        Token { name, readiness: self.clone() }
    }

    /// Not ready any more: the process is on its way out.
    pub fn close(&self) {
        self.locked(|state| state.closed = true);
    }

    /// Nothing is missing and the drain has not begun.
    pub fn is_ready(&self) -> bool {
        self.locked(|state| state.missing.is_empty() && !state.closed)
    }

    /// What keeps us from being ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.locked(|state| {
            let draining = state.closed.then_some("draining");
            state.missing.iter().copied().chain(draining).collect()
        })
    }

    fn locked<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.readiness.locked(|state| {
            if let Some(index) = state.missing.iter().position(|name| *name == self.name) {
                state.missing.swap_remove(index);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_between_the_last_part_and_the_drain() {
        let readiness = Readiness::default();
        let first = readiness.expect("configuration");
        let second = readiness.expect("listeners");

        drop(second);
        assert_eq!(readiness.missing(), ["configuration"]);
        drop(first);
        assert!(readiness.is_ready());
        readiness.close();
        assert_eq!(readiness.missing(), ["draining"]);
    }
}
