//! The product on the wire: one test binary, a file for each feature, a real proxy on ports of the system against
//! scripted origins. What needs other programs is in `peers` (nginx, curl) and `page` (Chromium) and says what it left out.

#![allow(clippy::unwrap_used, reason = "the whole binary is a test; a panic is its way to fail")]
#![allow(
    clippy::disallowed_methods,
    reason = "threads and tasks of the kit end with the origin or the load that owns them"
)]
#![allow(clippy::needless_pass_by_value, reason = "`impl ToString` reads better at the call")]
#![allow(unreachable_pub, reason = "the kit's public face is for this binary")]

mod addresses;
mod bad_input;
mod cli;
mod compare;
mod docs;
mod doctor;
mod drain;
mod endurance;
mod exchanges;
mod fallback;
mod fleet;
mod floods;
mod forwarding;
mod fuzz;
mod grpc;
mod heads;
mod health;
mod history;
mod http2_upstream;
mod image;
mod kit;
mod layers;
mod leaving;
mod limits;
mod manifests;
mod messages;
mod mtls;
mod origins;
mod page;
mod passthrough;
mod peers;
mod pooling;
mod proxy_protocol;
mod redirect;
mod reload;
#[cfg(feature = "kubernetes")]
mod rollback;
mod routing;
mod secrets;
#[cfg(feature = "kubernetes")]
mod sharing;
mod smuggling;
mod sslyze;
mod state;
mod support;
mod terminal;
mod tls;
mod verify;
mod websocket;
