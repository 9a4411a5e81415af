//! Stands in for parts that are not built yet.

/// The process.
pub mod app {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use crate::config::Environment;

    /// What to start with.
    #[derive(Debug)]
    pub struct Options {
        /// The file.
        pub config: PathBuf,
        /// Variables.
        pub environment: Environment,
    }

    /// Why it did not start.
    #[derive(Debug)]
    pub enum StartError {
        /// Problems of the file.
        Config(String),
        /// Anything else.
        Other(String),
    }

    /// Where it listens.
    #[derive(Debug)]
    pub struct Addresses {
        /// Plain.
        pub http: Vec<SocketAddr>,
        /// TLS.
        pub https: Vec<SocketAddr>,
        /// Admin.
        pub admin: SocketAddr,
    }

    /// A running process.
    #[derive(Debug)]
    pub struct App {
        /// Where it listens.
        pub addresses: Addresses,
    }

    impl App {
        /// Starts.
        pub fn start(_options: Options) -> Result<Self, StartError> {
            Err(StartError::Other("not built yet".to_owned()))
        }

        /// Serves.
        pub fn run_until_signal(self) -> bool {
            false
        }

        /// Ends.
        pub fn shutdown(self) -> bool {
            false
        }
    }
}
