//! Chooses where the state is kept: in a file of this replica, or where all replicas of a Deployment find it.

use std::sync::Arc;

use super::candidate::Candidate;
use super::keeper::Keeper;
#[cfg(feature = "kubernetes")]
use super::kubernetes::StateMap;
use super::shared::Store;
use super::state_file::StateFile;
use crate::config::{ConfigError, Environment, StateBackend};
use crate::readiness::Readiness;
use crate::shutdown::Drain;

/// Where the state is kept, and what tells of changes there.
pub struct Backend {
    /// For the keeper.
    pub store: Store,
    #[cfg(feature = "kubernetes")]
    map: Option<Arc<StateMap>>,
}

impl Backend {
    /// What `state.backend` asks for. Must be called inside the runtime that it shall work on; we are not ready before a
    /// shared state is known.
    ///
    /// # Errors
    ///
    /// It asks for Kubernetes, and there is none.
    pub fn choose(first: &Candidate, environment: &Environment, readiness: &Readiness) -> Result<Self, ConfigError> {
        let config = first.config();
        let file = StateFile::in_directory(&config.reload.state_dir);
        match (config.state.backend, kubernetes(environment, &config.state)) {
            (StateBackend::File, _) | (StateBackend::Auto, Err(_)) => Ok(Self::alone(file)),
            (StateBackend::Kubernetes, Err(why)) => Err(first.unfit(
                "state.backend",
                format!("Kubernetes cannot keep the state: {why}"),
                Some("use auto or file".to_owned()),
            )),
            (StateBackend::Auto | StateBackend::Kubernetes, Ok(map)) => Ok(Self::shared(file, map, readiness)),
        }
    }

    /// Other replicas would not hear of what is changed here.
    pub fn is_alone(&self) -> bool {
        self.store.remote.is_none()
    }
}

#[cfg(feature = "kubernetes")]
impl Backend {
    fn alone(file: StateFile) -> Self {
        Self { store: file.into(), map: None }
    }

    fn shared(file: StateFile, map: StateMap, readiness: &Readiness) -> Self {
        let map = Arc::new(map);
        let remote = Some((map.clone() as Arc<dyn super::shared::Remote>, readiness.expect("state")));
        Self { store: Store { file, remote }, map: Some(map) }
    }

    /// The keeper's store, and what follows changes of others on behalf of the keeper until the drain starts.
    pub fn split(self) -> (Store, impl FnOnce(Arc<Keeper>, Drain) + Send) {
        let Self { store, map } = self;
        let follow = |keeper, drain| {
            if let Some(map) = map {
                #[expect(clippy::disallowed_methods, reason = "owned by the control runtime; ends with the drain")]
                tokio::spawn(map.follow(keeper, drain));
            }
        };
        (store, follow)
    }
}

#[cfg(not(feature = "kubernetes"))]
impl Backend {
    fn alone(file: StateFile) -> Self {
        Self { store: file.into() }
    }

    fn shared(_: StateFile, nowhere: std::convert::Infallible, _: &Readiness) -> Self {
        match nowhere {}
    }

    /// The keeper's store, and nothing that follows.
    pub fn split(self) -> (Store, impl FnOnce(Arc<Keeper>, Drain) + Send) {
        (self.store, |_, _| {})
    }
}

#[cfg(feature = "kubernetes")]
fn kubernetes(environment: &Environment, options: &crate::config::State) -> Result<StateMap, String> {
    match options.backend {
        StateBackend::File => Err("not asked for".to_owned()),
        StateBackend::Auto | StateBackend::Kubernetes => StateMap::of_this_pod(environment, options),
    }
}

#[cfg(not(feature = "kubernetes"))]
fn kubernetes(_: &Environment, _: &crate::config::State) -> Result<std::convert::Infallible, String> {
    Err("this program was built without the feature kubernetes".to_owned())
}
