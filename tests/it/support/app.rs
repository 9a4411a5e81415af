//! The product in this process, on ports of the system.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::PathBuf;

use migration_proxy::app::{App, Options, StartError};
use migration_proxy::upstream::dns::Sources;
use tempfile::TempDir;

use super::reach::Reach;
use super::setup::{Addresses, ConfigFile, Ports, Setup};

/// A proxy that serves until it is dropped.
pub struct Proxy {
    reach: Reach,
    /// Its configuration, a ConfigMap volume.
    pub file: ConfigFile,
    _app: App,
    // Behind the app: the app writes into it until its end.
    directory: TempDir,
}

fn start(config: PathBuf, names: Sources, environment: BTreeMap<String, String>) -> Result<App, StartError> {
    App::start(Options { config, environment, names, heeds_signals: false })
}

impl Proxy {
    /// A proxy with this configuration.
    #[track_caller]
    pub fn start(setup: &Setup) -> Self {
        let directory = TempDir::new().unwrap();
        let text = setup.text(directory.path(), Ports::ANY);
        let file = ConfigFile::kubelet(&directory.path().join("config"), &text);
        Self::over(directory, file, &text, setup)
    }

    /// The same from an ordinary file instead of a ConfigMap volume.
    #[track_caller]
    pub fn start_from_plain_file(setup: &Setup) -> Self {
        let directory = TempDir::new().unwrap();
        let text = setup.text(directory.path(), Ports::ANY);
        let file = ConfigFile::plain(&directory.path().join("config"), &text);
        Self::over(directory, file, &text, setup)
    }

    #[track_caller]
    fn over(directory: TempDir, file: ConfigFile, text: &str, setup: &Setup) -> Self {
        let app = start(file.path(), setup.names(), setup.variables(directory.path()));
        let app = app.unwrap_or_else(|error| panic!("the proxy does not start: {error}\n{text}"));
        let addresses = Addresses {
            http: app.addresses.http[0],
            https: app.addresses.https.first().copied(),
            admin: app.addresses.admin,
        };
        let reach = Reach { addresses, directory: directory.path().to_owned() };
        Self { reach, file, _app: app, directory }
    }

    /// The text that `setup` has for this proxy.
    pub fn text(&self, setup: &Setup) -> String {
        setup.text(self.directory.path(), Ports::ANY)
    }

    /// Swaps the configuration and waits until it is served.
    #[track_caller]
    pub fn reload(&self, setup: &Setup) {
        let before = self.generation();
        self.file.replace(&self.text(setup));
        self.wait_for_generation_after(before);
    }
}

impl Deref for Proxy {
    type Target = Reach;

    fn deref(&self) -> &Reach {
        &self.reach
    }
}
