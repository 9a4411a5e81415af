//! A state in a ConfigMap, which replicas change one after the other by its resourceVersion and watch for what the others
//! change. A lost API server is tried again for ever; what the rights of the service account do not allow is said with the
//! Role that would.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Client, Error};
use serde_json::json;

use super::api_server::ApiServer;
use super::keeper::Keeper;
use super::shared::{self, Asked, Content, Found, Learnt, Remote, RemoteError, Revision};
use super::state::State;
use crate::config::{self, Environment, plain};
use crate::shutdown::Drain;
use crate::upstream::finding::Finding;

/// The key of the state.
const KEY: &str = "state.yaml";
/// Where something that makes no sense is kept when a state takes its place.
const ASIDE: &str = "state.yaml.unreadable";

/// Any answer but that of a watch.
const ANSWER: Duration = Duration::from_secs(5);

/// A watch is asked for anew after this many seconds.
const WATCH: u32 = 290;
/// Beside a watch, the state is read so often: a watch may have died without a word.
const LOOK: Duration = Duration::from_secs(10);
/// And so often where watching is not allowed.
const POLL: Duration = Duration::from_secs(1);

/// Between two attempts to follow, and the longest of these while the API server answers.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
const LONGEST_ANSWERED: Duration = Duration::from_millis(400);
/// After so much time of following, an end of it is no failure.
const STEADY: Duration = Duration::from_secs(5);

/// A ConfigMap that holds the state.
pub struct StateMap {
    maps: Api<ConfigMap>,
    name: String,
    namespace: String,
}

/// How following ended.
enum End {
    /// As it must now and then.
    Usual,
    /// Watching is not allowed.
    Forbidden(String),
}

impl StateMap {
    /// That of the cluster that we run in. Must be called inside the runtime that it shall work on.
    ///
    /// # Errors
    ///
    /// We run in none, or do not know in which namespace.
    pub fn of_this_pod(environment: &Environment, options: &config::State) -> Result<Self, String> {
        let server = ApiServer::of_this_pod(environment)?;
        let namespace = options.namespace.clone().map_or_else(|| server.namespace(), Ok)?;
        let client = Client::new(server, namespace.clone());
        Ok(Self { maps: Api::namespaced(client, &namespace), name: options.config_map.clone(), namespace })
    }

    /// Tells the keeper what others change, until the drain starts.
    pub async fn follow(self: Arc<Self>, keeper: Arc<Keeper>, drain: Drain) {
        tokio::select! {
            () = drain.started() => {}
            () = self.follow_on(&keeper) => {}
        }
    }

    async fn follow_on(&self, keeper: &Keeper) {
        let mut tries = 0;
        loop {
            let start = Instant::now();
            let longest = match self.follow_once(keeper).await {
                Ok(End::Usual) => LONGEST_ANSWERED,
                Ok(End::Forbidden(error)) => {
                    keeper.limit(Some(error));
                    self.poll(keeper).await;
                    LONGEST_ANSWERED
                }
                // Another replica has just made the ConfigMap that was missing.
                Err(RemoteError::Conflict) => LONGEST_ANSWERED,
                Err(error) => {
                    keeper.lose(&error);
                    LONGEST
                }
            };
            tries = if start.elapsed() < STEADY { tries + 1 } else { 0 };
            tokio::time::sleep(shared::pause(tries, SHORTEST, longest)).await;
        }
    }

    /// Lists and watches to the end of the watch.
    async fn follow_once(&self, keeper: &Keeper) -> Result<End, RemoteError> {
        let learnt = keeper.learnt();
        let named = format!("metadata.name={}", self.name);
        let params = ListParams::default().fields(&named);
        let list = match answered(self.maps.list(&params)).await {
            Ok(list) => list,
            Err(Fault::Api(status)) if status.is_forbidden() => return Ok(End::Forbidden(self.forbidden(&status))),
            Err(fault) => return Err(self.failed(fault)),
        };
        let found = match list.items.into_iter().find(|map| map.metadata.name.as_ref() == Some(&self.name)) {
            Some(map) => self.found(map),
            None => self.find().await?,
        };
        keeper.learn(found, Learnt::Read(learnt));
        let since = list.metadata.resource_version.unwrap_or_default();
        self.watch(keeper, &WatchParams::default().fields(&named).timeout(WATCH), &since).await
    }

    async fn watch(&self, keeper: &Keeper, params: &WatchParams, since: &str) -> Result<End, RemoteError> {
        let events = match answered(self.maps.watch(params, since)).await {
            Ok(events) => events,
            Err(Fault::Api(status)) if status.is_forbidden() => return Ok(End::Forbidden(self.forbidden(&status))),
            Err(Fault::Api(status)) if status.code == 410 => return Ok(End::Usual),
            Err(fault) => return Err(self.failed(fault)),
        };
        keeper.limit(None);
        let mut events = pin!(events);
        let mut look = tokio::time::interval(LOOK);
        look.tick().await;
        loop {
            let event = tokio::select! {
                event = events.try_next() => event,
                _ = look.tick() => {
                    let learnt = keeper.learnt();
                    keeper.learn(self.find().await?, Learnt::Read(learnt));
                    continue;
                }
            };
            match event {
                Ok(Some(WatchEvent::Added(map) | WatchEvent::Modified(map))) => {
                    if map.metadata.name.as_ref() == Some(&self.name) {
                        keeper.learn(self.found(map), Learnt::Told);
                    }
                }
                Ok(Some(WatchEvent::Bookmark(_))) => {}
                // What is there now, and whether anybody answers, the next list tells.
                Ok(Some(WatchEvent::Deleted(_) | WatchEvent::Error(_)) | None) => return Ok(End::Usual),
                Err(error) => {
                    tracing::debug!(%error, "the watch of the state ended");
                    return Ok(End::Usual);
                }
            }
        }
    }

    /// What a service account that may only read can do instead of watching, for a while.
    async fn poll(&self, keeper: &Keeper) {
        let end = Instant::now() + LONGEST;
        while Instant::now() < end {
            let learnt = keeper.learnt();
            match self.find().await {
                Ok(found) => keeper.learn(found, Learnt::Read(learnt)),
                Err(error) => return keeper.lose(&error),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What is there now. A ConfigMap that is missing is made, where that is allowed.
    async fn find(&self) -> Result<Found, RemoteError> {
        match answered(self.maps.get(&self.name)).await {
            Ok(map) => return Ok(self.found(map)),
            Err(Fault::Api(status)) if status.is_not_found() => {}
            Err(fault) => return Err(self.failed(fault)),
        }
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, ..ConfigMap::default() };
        match answered(self.maps.create(&PostParams::default(), &map)).await {
            Ok(map) => Ok(self.found(map)),
            Err(Fault::Api(status)) if status.code == 409 => Err(RemoteError::Conflict),
            Err(Fault::Api(status)) => Err(RemoteError::Refused(format!(
                "there is no ConfigMap {} in namespace {}, and it cannot be made from here ({}): \
                 kubectl -n {1} create configmap {0}",
                self.name, self.namespace, status.message
            ))),
            Err(fault) => Err(self.failed(fault)),
        }
    }

    async fn replace(&self, state: &State, known: &Found) -> Result<Revision, RemoteError> {
        let mut data = serde_json::Map::new();
        data.insert(KEY.to_owned(), json!(plain::to_text(state).map_err(RemoteError::Refused)?));
        if let Content::Unreadable { text, .. } = &known.content {
            data.insert(ASIDE.to_owned(), json!(text));
        }
        let patch = json!({"metadata": {"resourceVersion": known.revision.0}, "data": data});
        match answered(self.maps.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))).await {
            Ok(map) => Ok(Revision(map.metadata.resource_version)),
            // Gone meanwhile: whoever reads it again makes it again.
            Err(Fault::Api(status)) if status.code == 409 || status.is_not_found() => Err(RemoteError::Conflict),
            Err(fault) => Err(self.failed(fault)),
        }
    }

    fn found(&self, map: ConfigMap) -> Found {
        let text = map.data.and_then(|mut data| data.remove(KEY)).filter(|text| !text.trim().is_empty());
        let content = match text {
            None => Content::Nothing,
            Some(text) => match plain::from_text(&text) {
                Ok(state) => Content::State(state),
                Err(error) => {
                    let error = format!("{KEY} of ConfigMap {} in namespace {}: {error}", self.name, self.namespace);
                    Content::Unreadable { text, error }
                }
            },
        };
        Found { content, revision: Revision(map.metadata.resource_version) }
    }

    fn failed(&self, fault: Fault) -> RemoteError {
        match fault {
            Fault::Api(status) if status.is_forbidden() => RemoteError::Refused(self.forbidden(&status)),
            Fault::Api(status) if status.code == 401 => {
                RemoteError::Refused(format!("the API server does not accept our token: {}", status.message))
            }
            Fault::Api(status) if status.code >= 500 || status.code == 429 => {
                RemoteError::Unreachable(format!("the API server answers {}: {}", status.code, short(&status.message)))
            }
            Fault::Api(status) => {
                RemoteError::Refused(format!("the API server answers {}: {}", status.code, short(&status.message)))
            }
            Fault::Silence(error) => RemoteError::Unreachable(format!("no answer of the API server: {error}")),
        }
    }

    /// What an attempt says of a right.
    fn right<T>(&self, verb: &str, tried: Result<T, Fault>) -> Finding {
        let Self { name, namespace, .. } = self;
        match tried {
            Ok(_) => Finding::ok("rbac", format!("{verb} of ConfigMap {name} in namespace {namespace} is allowed")),
            Err(Fault::Api(status)) if status.is_forbidden() => Finding::fail(
                "rbac",
                format!("{verb} of ConfigMap {name} in namespace {namespace} is forbidden: {}", short(&status.message)),
                format!(
                    "apply k8s/rbac.yaml: the Role of our service account needs get, list, watch and patch of configmaps \
                     with resourceNames [{name}]"
                ),
            ),
            Err(Fault::Api(status)) if status.is_not_found() => Finding::fail(
                "rbac",
                format!("there is no ConfigMap {name} in namespace {namespace}"),
                format!("kubectl -n {namespace} create configmap {name}"),
            ),
            Err(fault) => Finding::fail(
                "rbac",
                format!("{verb} of ConfigMap {name}: {}", self.failed(fault)),
                "let a NetworkPolicy allow the API server (its Service and its own address), and the pod mount its token",
            ),
        }
    }

    fn forbidden(&self, status: &Status) -> String {
        format!(
            "{}; the Role of our service account needs get, list, watch and patch of configmaps with resourceNames \
             [{}] in namespace {}",
            short(&status.message),
            self.name,
            self.namespace
        )
    }
}

impl Remote for StateMap {
    fn read(&self) -> Asked<'_, Found> {
        Box::pin(self.find())
    }

    fn write<'a>(&'a self, state: &'a State, known: &'a Found) -> Asked<'a, Revision> {
        Box::pin(self.replace(state, known))
    }

    fn examine(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>> {
        Box::pin(async {
            let named = ListParams::default().fields(&format!("metadata.name={}", self.name)).limit(1);
            let nothing = Patch::Merge(json!({}));
            let dry = PatchParams { dry_run: true, ..PatchParams::default() };
            vec![
                self.right("get", answered(self.maps.get(&self.name)).await),
                self.right("list", answered(self.maps.list(&named)).await),
                self.right("patch", answered(self.maps.patch(&self.name, &dry, &nothing)).await),
            ]
        })
    }
}

/// Why there is no answer that can be used.
enum Fault {
    /// There is one, but it says no.
    Api(Box<Status>),
    /// There is none.
    Silence(String),
}

async fn answered<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Error::Api(status))) => Err(Fault::Api(status)),
        Ok(Err(Error::Service(error))) => Err(Fault::Silence(chain(&*error))),
        Ok(Err(error)) => Err(Fault::Silence(chain(&error))),
        Err(_) => Err(Fault::Silence(format!("it takes longer than {} s", ANSWER.as_secs()))),
    }
}

/// An error and its causes, which say what the error itself leaves out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A page of a broken gateway is no error text.
fn short(message: &str) -> String {
    const LONGEST: usize = 300;
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(LONGEST).collect()
}
