//! Asks whoever reloads for a configuration of the history. It serves until the file changes again.

use tokio::sync::{mpsc, oneshot};

use super::history::{Author, NotFound};
use crate::config::ConfigError;
use crate::telemetry::difference::Difference;

/// Wishes that wait; more of them wait with their author.
const WAITING: usize = 8;

/// Somebody wants an earlier configuration.
pub struct Wish {
    /// The beginning of its hash.
    pub hash: String,
    /// Who, and why.
    pub author: Author,
    answer: oneshot::Sender<Result<RolledBack, RollbackError>>,
}

impl Wish {
    /// Tells the author what became of it; one who has left does not hear it.
    pub fn answer(self, answer: Result<RolledBack, RollbackError>) {
        let _ = self.answer.send(answer);
    }
}

/// What a wish led to.
#[derive(Clone, Debug, PartialEq)]
pub struct RolledBack {
    /// The hash of what is served now.
    pub hash: String,
    /// The hash of what was served before.
    pub before: String,
    /// What is different.
    pub changes: Vec<Difference>,
    /// The file has another text, which is not followed until it changes.
    pub pinned: bool,
}

/// Why an earlier configuration is not served.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// There is none with this hash.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It cannot be served as things are now.
    #[error("it cannot be served any more: {}", .0.summary())]
    Unusable(ConfigError),
    /// The process is on its way out.
    #[error("the process is about to end")]
    Ending,
}

impl From<ConfigError> for RollbackError {
    fn from(error: ConfigError) -> Self {
        Self::Unusable(error)
    }
}

/// Where wishes are brought.
#[derive(Clone, Debug)]
pub struct RollbackHandle(mpsc::Sender<Wish>);

/// A handle, and where its wishes come out.
pub fn channel() -> (RollbackHandle, mpsc::Receiver<Wish>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (RollbackHandle(sender), receiver)
}

impl RollbackHandle {
    /// Serves the configuration whose hash begins so; done when it is in force, also when the caller leaves meanwhile.
    ///
    /// # Errors
    ///
    /// There is none, or it cannot be served; nothing was changed.
    pub async fn roll_back(&self, hash: String, author: Author) -> Result<RolledBack, RollbackError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Wish { hash, author, answer }).await.map_err(|_| RollbackError::Ending)?;
        answered.await.unwrap_or(Err(RollbackError::Ending))
    }
}
