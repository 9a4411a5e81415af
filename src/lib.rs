//! migration-proxy stands in front of an old and a new Kubernetes cluster and decides for every request which of them
//! answers. This page is the map of its code; the manual is `README.md`, `docs/` and `config/full.yaml`.
//!
//! Sockets come in at [`server`] and become requests for one readable function, [`Proxy::handle`], which asks [`routing`]
//! for a decision and [`upstream`] for a connection. [`control`] changes what [`routing`] serves while requests run;
//! [`admin`] and [`cli`] show and steer it.
//!
//! # Folders, in reading order
//!
//! | where | what |
//! | --- | --- |
//! | [`config`] | what the operator wrote: text in, a checked [`Config`] or every mistake with its place out |
//! | [`routing`] | what is served: the [`Snapshot`], its [`Service`]s, their rules and shares, and [`decide`] |
//! | [`upstream`] | one backend: names, addresses, connections, the [`Pool`], the [`Breaker`], the [`Health`] check |
//! | [`proxy`] | one request from head to last byte |
//! | [`server`] | sockets, TLS and HTTP towards clients, spread over the workers |
//! | [`control`] | files that change, what commands changed apart from them, the other replicas, and the report of what is and was |
//! | [`admin`] | `/health`, `/ready`, `/metrics`, `/status`, the page at `/`, and `/api/v1`, where commands write |
//! | [`cli`] | one file for each verb |
//! | [`app`] | builds every part, owns the runtimes, ends them in order |
//! | [`telemetry`] | metrics, access log, audit and control lines, the last decisions, and the closed sets of [`labels`] |
//! | [`tls`] | certificates: ours towards clients, identity and trust towards upstreams |
//! | [`manifest`] | Kubernetes manifests of a configuration, and the other way |
//! | [`net`] | bytes without HTTP |
//! | [`readiness`], [`shutdown`] | may traffic come; has everything ended |
//!
//! # Layers
//!
//! A module names lower ranks only; [`proxy`] and [`control`] never see each other and meet in [`routing`].
//!
//! ```text
//! 7  cli                               verbs
//! 6  app                               builds, owns, ends
//! 5  server    admin                   edges: sockets in, HTTP out
//! 4  proxy     control                 one request (fast, bounded) · what changes (slow, may fail)
//! 3  routing                           what is served
//! 2  upstream  manifest                one backend · text to and from Kubernetes
//! 1  telemetry tls                     handles, certificates
//! 0  config    net  readiness shutdown the bottom: names nothing of ours
//! ```
//!
//! # The walk of one request
//!
//! 1. [`Listener::accept`] gives a tuned socket. [`server::accept`] runs on a thread of its own and hands it to the
//!    [`Worker`] with the fewest connections, a single-threaded runtime that the request never leaves.
//! 2. [`server::connection::serve`] finishes TLS or goes on in clear, and lets hyper read HTTP/1.1 or HTTP/2.
//! 3. [`Proxy::handle`] begins an [`Exchange`], which will write the metrics and the access line when it is dropped.
//! 4. [`Live::service`] finds the service of the host: one look-up, one `Arc` that is kept to the end.
//! 5. [`Service::decide`] looks at safe mode, rules, the sticky key's [`Bucket`] and the breaker, and says [`Decision`]:
//!    a cluster and a reason. `explain` runs the same [`decide`] with a [`Trace`].
//! 6. [`forward`] is the loop over the tries: [`Upstream::admit`] asks the breaker, [`Pool::lease`] gives a connection,
//!    [`Lease::send`] sends. What comes back settles the [`Admission`]; a [`Failure`] says whether anything was sent and
//!    whom to blame, and so whether the same cluster, the other one or nobody is asked next.
//! 7. A head that came back is cleaned and mapped to the old host ([`proxy::headers`], [`proxy::rewrite`]); a refusal or
//!    failure of our own becomes an answer in [`proxy::reply`]; a 101 becomes a [`Tunnel`].
//! 8. The [`ResponseBody`] owns the lease and the exchange. At its end the connection goes back to its pool; when it is
//!    dropped, also because the client left, the exchange is over.
//!
//! # Other walks
//!
//! - **Relayed TLS** (`mode: passthrough`): [`client_hello`] finds the server name without taking a byte, and
//!   [`server::passthrough`] decides by the client's address, opens a [`Direct`] connection and relays; [`Tries`] says
//!   what follows a failed try, as it does in [`forward`].
//! - **Reload**: [`Watch`] sees a change, [`Candidate`] reads, decodes and compiles it with everything it names,
//!   [`Live::install`] serves it, and [`Reloader`] tells everybody ([`announcement`]): it audits what changed
//!   ([`differences`]) and keeps it in the [`History`], from where it can be served again. A mistake in any step leaves all
//!   as it was.
//! - **Names**: [`Resolver`] looks every name in use up again at its TTL; its answers reach [`Endpoints`], which chooses an
//!   address for each new connection, and the [`Pool`], which closes connections to addresses that have left.
//! - **Start**: [`opening::open`] takes the same steps before a socket is bound; where one fails, the last good copy
//!   serves, and where there is none the process ends.
//! - **A command**: the API hands a [`Change`] to the [`Keeper`], which applies it to the [`State`], stores that, and brings
//!   the [`Snapshot`] in line with it. A reload goes the same way: what the file changes clears what a command set.
//! - **The page**: [`Window`] turns meters into the last hour, [`Events`] tell open pages what has changed, made once for all of
//!   them; text from requests becomes text nodes and never markup.
//! - **Several replicas**: the [`Keeper`] stores through a [`Remote`], the `StateMap` of `control::kubernetes`, which refuses
//!   what was made of an older revision and tells what others store; [`merge`] joins what two replicas changed apart. The
//!   [`Watcher`] reads the `/status` of the others into the [`Fleet`], which only reports.
//! - **An examination**: `doctor` walks the way of a request in single steps, [`upstream::examine`] up to TLS and
//!   [`proxy::examine`] from there, [`control::examine`] looks at the process, and each step leaves a [`Finding`]. `verify` sends
//!   one [`Inquiry`] to both clusters and [`compare`]s. Neither touches pool, breaker or meters.
//! - **Stop**: [`App::shutdown`]: not ready, still accepting for `drain.delay`, then open work may finish within
//!   `drain.grace`, then the admin port, the threads and the last log lines.
//!
//! # Invariants, and the tests in `tests/it` that guard them
//!
//! 1. Imports point down the layers. `layers::modules_name_only_lower_layers`
//! 2. A request keeps the `Arc<Service>` that it began with.
//!    `reload::a_request_in_flight_keeps_the_configuration_that_it_began_with`
//! 3. The request path parses no operator's text, resolves no label and holds no lock across an await; a request stays
//!    on one thread, and it makes no difference on which. `routing::two_workers_decide_alike`, and the lint
//!    `await_holding_lock`
//! 4. Every request ends in one answer, one access line and at most one verdict to the breaker; leases, permits and
//!    gauges return by `Drop`. `smuggling::heads_are_well_formed_or_refused`,
//!    `bad_input::requests_over_a_limit_get_the_right_answer_and_are_counted`,
//!    `forwarding::a_leaving_client_ends_the_exchange_at_the_origin`, `fallback::leaving_clients_are_never_new_s_fault`
//! 5. What may have been executed is never sent twice. `fallback::an_unsafe_request_is_repeated_only_when_nothing_was_sent`,
//!    `fallback::a_post_is_sent_at_most_once_while_new_dies`, `http2_upstream::what_the_peer_may_have_processed_is_not`
//! 6. A connection never leaves its upstream, so identities never mix.
//!    `pooling::connections_to_an_origin_are_kept_and_never_shared_between_services`
//! 7. A bad file changes nothing but status, metric and log; a good one touches nothing of services that did not change.
//!    `reload::a_bad_file_changes_nothing_but_status_and_metric`,
//!    `reload::pools_breakers_and_connections_survive_another_service_s_change`
//! 8. What is decided and what is explained is one function. `routing::explanations_and_traffic_agree`
//! 9. Decisions, breaker, health and budget take time and dice as arguments and touch no socket: their tests stand beside them.
//! 10. Serving runtimes are made in [`app`] only; each spawned task names its owner and its end, held by a denied lint
//!     (`clippy.toml`).
//! 11. Shares change in [`Weight::set`] only; its tests stand beside it.
//! 12. Every queue, pool, buffer, retry loop and label set has a bound. `fallback::a_frozen_new_cluster_cannot_use_up_what_old_needs`,
//!     `forwarding::large_bodies_cost_no_memory`,
//!     `logs::a_stderr_that_nobody_reads_holds_up_neither_requests_nor_commands_nor_the_end`
//! 13. No log, status, metric, error or explanation shows a secret.
//!     `secrets::logs_status_metrics_errors_and_explanations_show_no_secret`
//! 14. What a command changed survives, until something newer changes it.
//!     `state::commands_survive_kill_and_a_resync_but_not_another_declared_value`
//! 15. Replicas that share a state serve one value of it, and never a third one. `sharing::no_update_of_a_thousand_is_lost`,
//!     `sharing::files_that_change_apart_never_lead_to_a_third_value`,
//!     `rollback::an_earlier_configuration_serves_on_every_replica_until_its_file_changes`
//! 16. What other replicas or the API server say or do not say disturbs no traffic.
//!     `sharing::a_lost_api_server_disturbs_no_traffic`, `fleet::peers_that_answer_garbage_or_never_are_unreachable`
//! 17. Every change is one audit line, and the history has it with its way back. `history::what_happened_is_told_with_the_way_back`
//! 18. The page needs nothing from elsewhere, and what comes from outside stays text.
//!     `page::it_suits_both_languages_both_themes_phones_and_desks`, `page::text_from_outside_stays_text`
//!
//! [`Admission`]: upstream::Admission
//! [`App::shutdown`]: app::App::shutdown
//! [`Breaker`]: upstream::breaker::Breaker
//! [`Bucket`]: routing::bucket::Bucket
//! [`Candidate`]: control::candidate::Candidate
//! [`Change`]: control::change::Change
//! [`Config`]: config::Config
//! [`Decision`]: routing::decide::Decision
//! [`Endpoints`]: upstream::endpoints::Endpoints
//! [`Events`]: admin::Events
//! [`Direct`]: upstream::direct::Direct
//! [`Exchange`]: proxy::exchange::Exchange
//! [`Failure`]: proxy::failure::Failure
//! [`Fleet`]: control::fleet::Fleet
//! [`Finding`]: upstream::finding::Finding
//! [`Health`]: upstream::health::Health
//! [`Inquiry`]: proxy::inquiry::Inquiry
//! [`History`]: control::history::History
//! [`Keeper`]: control::keeper::Keeper
//! [`Lease::send`]: upstream::pool::Lease::send
//! [`Listener::accept`]: net::listener::Listener::accept
//! [`Live::install`]: routing::live::Live::install
//! [`Live::service`]: routing::live::Live::service
//! [`Pool::lease`]: upstream::pool::Pool::lease
//! [`Pool`]: upstream::pool::Pool
//! [`Proxy::handle`]: proxy::Proxy::handle
//! [`Reloader`]: control::reload::Reloader
//! [`Remote`]: control::shared::Remote
//! [`Resolver`]: upstream::resolve::Resolver
//! [`ResponseBody`]: proxy::body::ResponseBody
//! [`Service::decide`]: routing::service::Service::decide
//! [`Service`]: routing::service::Service
//! [`Snapshot`]: routing::snapshot::Snapshot
//! [`State`]: control::state::State
//! [`opening::open`]: control::opening::open
//! [`Trace`]: routing::decide::Trace
//! [`Tries`]: proxy::tries::Tries
//! [`Tunnel`]: proxy::upgrade::Tunnel
//! [`Upstream::admit`]: upstream::Upstream::admit
//! [`Watch`]: control::watch::Watch
//! [`Watcher`]: control::peers::Watcher
//! [`Weight::set`]: routing::weight::Weight::set
//! [`Window`]: telemetry::Window
//! [`Worker`]: server::worker::Worker
//! [`announcement`]: control::announcement
//! [`client_hello`]: net::client_hello
//! [`compare`]: proxy::compare::compare
//! [`decide`]: routing::decide::decide
//! [`differences`]: control::differences::between
//! [`forward`]: proxy::forward::forward
//! [`labels`]: telemetry::labels
//! [`merge`]: control::merge::merge

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod manifest;
pub mod net;
pub mod proxy;
pub mod readiness;
pub mod routing;
pub mod server;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod upstream;
