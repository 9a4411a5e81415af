//! What a service's clusters say to requests, beginning with whether they can be reached at all. The requests are made as
//! those of clients are; what is found names what to do about it.

use std::net::SocketAddr;
use std::time::Duration;

use http::header::LOCATION;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};

use super::inquiry::{Answered, Fault, Inquiry, ask};
use crate::config::{Cluster, HostPattern, HttpVersion, Listen, Mode, Protocol};
use crate::routing::service::Service;
use crate::upstream::connect::Wanted;
use crate::upstream::examine::{self, Road};
use crate::upstream::finding::Finding;
use crate::upstream::probe::one_host;

/// A service takes no longer, whatever its timeouts are.
const LONGEST: Duration = Duration::from_secs(25);

/// As much of a body is read: enough to know an answer of ours.
const BODY: usize = 4 * 1024;

/// Asked with POST: nothing answers there, so nothing is changed, and checks of Origin come before the path is looked at.
const NOWHERE: &str = "/.well-known/migration-proxy-doctor";

/// Everything about one service.
pub async fn service(service: &Service, listen: &Listen) -> Vec<Finding> {
    let examined = tokio::time::timeout(LONGEST, Box::pin(clusters(service, listen))).await;
    let findings = examined.unwrap_or_else(|_| {
        let found = format!("not done within {} s", LONGEST.as_secs());
        vec![Finding::fail("time", found, "shorten timeouts.connect and timeouts.total of this service, and try again")]
    });
    findings.into_iter().map(|finding| finding.of_service(service.name())).collect()
}

async fn clusters(service: &Service, listen: &Listen) -> Vec<Finding> {
    let host = service.config.old_host.first().map(one_host).unwrap_or_default();
    let (old, new, returns) =
        tokio::join!(road(service, Cluster::Old, &host), road(service, Cluster::New, &host), old_addresses(service));
    let mut findings = old.findings.clone();
    findings.extend(new.findings.iter().cloned());
    findings.extend(circle(service, &old, &new, &returns, listen).map(|finding| finding.of_cluster(Cluster::New)));
    for (cluster, options) in [(Cluster::Old, &service.config.old), (Cluster::New, &service.config.new)] {
        if options.protocol == Protocol::Https && !options.verify && !service.passes_through() {
            let side = cluster.as_str();
            let fix = format!("set {side}.ca_file to the authority's certificate and remove verify: off");
            findings
                .push(Finding::warn("verify", "certificates are not verified (verify: off)", fix).of_cluster(cluster));
        }
    }
    if service.passes_through() {
        return findings;
    }
    // Behind an Ingress that is believed, clients mostly speak TLS.
    let is_tls = !listen.https.is_empty() || !listen.trusted_proxies.is_empty();
    findings.extend(pages(service, &old, &new, is_tls).await);
    findings
}

async fn road(service: &Service, cluster: Cluster, host: &str) -> Road {
    let wanted = if service.passes_through() { Wanted::Bytes } else { service.wanted(cluster, false) };
    examine::examine(&service.upstream(cluster).pool, wanted, host).await
}

/// Where clients that ask for the old hosts are sent: the old Ingress.
async fn old_addresses(service: &Service) -> Vec<std::net::IpAddr> {
    let mut addresses = Vec::new();
    for host in service.config.old_host.iter().take(2) {
        if let HostPattern::Exact(name) = host {
            let found = examine::look_up(&service.new.pool, name).await;
            addresses.extend(found.map(|found| found.addresses).unwrap_or_default());
        }
    }
    addresses
}

/// A new backend that is where requests come from.
fn circle(service: &Service, old: &Road, new: &Road, returns: &[std::net::IpAddr], listen: &Listen) -> Option<Finding> {
    let fix = "set new_backend to the address of the new cluster's gateway; new_host stays what it is";
    let is_ours = |address: &&SocketAddr| {
        let here = new.from == Some(address.ip()) || address.ip().is_loopback();
        let listeners = listen.http.iter().chain(&listen.https).chain([&listen.admin]);
        here && listeners.into_iter().any(|own| own.port() == address.port() && address.port() != 0)
    };
    if let Some(address) = new.addresses.iter().find(is_ours) {
        return Some(Finding::fail("loop", format!("new_backend is this proxy itself: {address}"), fix));
    }
    let old_host = service.config.old_host.first().map(ToString::to_string).unwrap_or_default();
    if let Some(address) = new.addresses.iter().find(|address| returns.contains(&address.ip())) {
        let found = format!("new_backend is where {old_host} leads, the old Ingress: {address}");
        return Some(Finding::fail("loop", found, fix));
    }
    let both = new.addresses.iter().find(|address| old.addresses.contains(address))?;
    Some(Finding::warn("loop", format!("old_backend and new_backend are both {both}"), fix))
}

/// What the clusters answer, old first: what is strange on new is strange only when old does otherwise.
async fn pages(service: &Service, old: &Road, new: &Road, is_tls: bool) -> Vec<Finding> {
    let health = &service.config.health_check.path;
    let path: PathAndQuery = health.parse().unwrap_or(PathAndQuery::from_static("/"));
    let get = Inquiry::get(path.clone());
    let get = if is_tls { get.over_tls() } else { get };
    let mut findings = Vec::new();
    let old_page = if old.is_open { Some(ask(service, Cluster::Old, &get, BODY).await) } else { None };
    if let Some(page) = &old_page {
        findings.push(old_answer(&path, page).of_cluster(Cluster::Old));
    }
    // With redirects it is the clients that reach new, and only they know how.
    if !new.is_open || service.config.mode == Mode::Redirect {
        return findings;
    }
    let page = ask(service, Cluster::New, &get, BODY).await;
    let old_status = old_page.as_ref().and_then(|page| page.as_ref().ok()).map(Answered::status);
    findings.push(new_answer(service, &path, &page, old_status, new, is_tls).of_cluster(Cluster::New));
    if page.is_ok_and(|page| !page.came_back()) {
        findings.push(upgrade(service, old.is_open).await.of_cluster(Cluster::New));
        findings.push(origin(service).await.of_cluster(Cluster::New));
    }
    findings
}

fn shown(method: &Method, path: &PathAndQuery, answered: &Answered) -> String {
    format!("{method} {path} \u{2192} {} in {} ms", answered.status().as_u16(), answered.taken.as_millis())
}

fn old_answer(path: &PathAndQuery, page: &Result<Answered, Fault>) -> Finding {
    match page {
        Err(fault) => Finding::fail("http", fault.to_string(), "see whether the old backend's pods are ready"),
        Ok(page) if page.came_back() => Finding::fail(
            "loop",
            "a request to old_backend came back to a proxy like this one",
            "set old_backend to the Service of the application, not to the Ingress",
        ),
        Ok(page) if page.status().is_server_error() => {
            Finding::warn("http", shown(&Method::GET, path, page), "see whether the old backend's pods are ready")
        }
        Ok(page) => Finding::ok("http", shown(&Method::GET, path, page)),
    }
}

fn new_answer(
    service: &Service,
    path: &PathAndQuery,
    page: &Result<Answered, Fault>,
    old_status: Option<StatusCode>,
    road: &Road,
    is_tls: bool,
) -> Finding {
    let host = service.headers.new_host_value.to_str().unwrap_or_default();
    let page = match page {
        Err(Fault::Connect(error)) => {
            let fix = "see the lines above; it worked once and failed the next time";
            return Finding::fail("http", error.to_string(), fix);
        }
        Err(fault) => {
            let fix = "see the log of the gateway; new.protocol and new.http_version must be what it speaks";
            return Finding::fail("http", fault.to_string(), fix);
        }
        Ok(page) => page,
    };
    let status = page.status();
    let found = format!("{} for Host {host}", shown(&Method::GET, path, page));
    if page.came_back() {
        let fix = "set new_backend to the address of the new cluster's gateway";
        return Finding::fail("loop", "a request to new_backend came back to a proxy like this one", fix);
    }
    if is_sent_to_itself(service, page, path) {
        let fix = if is_tls {
            "let the new gateway believe X-Forwarded-Proto of this proxy: it says https, which the gateway asks for"
        } else {
            "if clients speak TLS to an Ingress in front of this proxy, add its network to listen.trusted_proxies: then its \
             X-Forwarded-Proto is passed on"
        };
        return Finding::warn("http", format!("{found}, a redirect to itself"), fix);
    }
    let check = &service.config.health_check;
    let is_expected = |low: u16, high: u16| (low..=high).contains(&status.as_u16());
    if !check.path.is_empty() && !check.expect.iter().any(|(low, high)| is_expected(*low, *high)) {
        return Finding::fail(
            "http",
            format!("{found}, which health_check.expect does not list"),
            status_fix(status, host, road),
        );
    }
    let is_same = old_status == Some(status);
    match status.as_u16() {
        421 | 502..=504 => Finding::fail("http", found, status_fix(status, host, road)),
        403 | 404 if !is_same && check.path.is_empty() => {
            let old = old_status.map_or_else(String::new, |old| format!(", old answers {}", old.as_u16()));
            Finding::fail("http", format!("{found}{old}"), status_fix(status, host, road))
        }
        500..=599 if !is_same => Finding::warn("http", found, status_fix(status, host, road)),
        _ => Finding::ok("http", found),
    }
}

/// A redirect to the same place: whoever answers takes the client to speak in clear, and would do so for ever.
fn is_sent_to_itself(service: &Service, page: &Answered, path: &PathAndQuery) -> bool {
    let Some(location) = page.field(LOCATION).and_then(|location| location.parse::<http::Uri>().ok()) else {
        return false;
    };
    let hosts = &service.config.old_host;
    let is_here = location.host().is_none_or(|host| hosts.iter().any(|pattern| one_host(pattern) == host));
    page.status().is_redirection() && is_here && location.path_and_query() == Some(path)
}

fn status_fix(status: StatusCode, host: &str, road: &Road) -> String {
    let from = road.from.map_or_else(|| "this pod".to_owned(), |from| from.to_string());
    match status.as_u16() {
        421 => {
            "Host and server name disagree for the gateway: set new.host_header and new.sni to the same name".to_owned()
        }
        403 => format!(
            "if the gateway has an allow-list, let {from} in (or the node's or NAT address that it leaves with); else \
             compare with old: migration-proxy verify"
        ),
        404 => format!("the gateway may have no route for Host {host}: create it there, or set new.host_header"),
        502..=504 => format!("the gateway has the route, but nothing ready behind it for Host {host}"),
        _ => "see the log of the application in the new cluster".to_owned(),
    }
}

/// Whether upgrades arrive. 400 and 426 come from whoever understood the wish.
async fn upgrade(service: &Service, old_is_open: bool) -> Finding {
    let inquiry = Inquiry::get(PathAndQuery::from_static("/")).upgrading();
    let new = match ask(service, Cluster::New, &inquiry, BODY).await {
        Ok(new) => new.status(),
        Err(fault) => {
            let fix = "a WebSocket at / ends so: allow upgrades on the new gateway";
            return Finding::warn("websocket", format!("an upgrade at /: {fault}"), fix);
        }
    };
    let found = format!("an upgrade at / \u{2192} {}", new.as_u16());
    match new.as_u16() {
        101 => return Finding::ok("websocket", found),
        400 | 426 => return Finding::ok("websocket", format!("{found}: it arrives and is refused with reason")),
        _ => {}
    }
    let old = if old_is_open { ask(service, Cluster::Old, &inquiry, BODY).await.ok() } else { None };
    match old.map(|old| old.status().as_u16()) {
        Some(old @ (101 | 400 | 426)) => {
            let is_http2 = service.config.new.http_version == HttpVersion::Http2;
            let fix = if is_http2 {
                "set new.http_version: auto, upgrades need HTTP/1.1; and allow WebSockets on the new gateway"
            } else {
                "allow WebSockets on the new gateway: HTTP/1.1 and the fields Upgrade and Connection towards the application, \
                 and a read timeout of hours"
            };
            Finding::fail(
                "websocket",
                format!("{found}, old answers {old}: something before new takes the upgrade out"),
                fix,
            )
        }
        _ => Finding::ok("websocket", format!("{found}: no WebSocket there, on neither side")),
    }
}

/// Whether new takes the browser's word that the page comes from the old host (CSRF checks compare it with Host).
async fn origin(service: &Service) -> Finding {
    let old_host = service.config.old_host.first().map(one_host).unwrap_or_default();
    let ours = format!("https://{old_host}");
    let post = Inquiry::new(Method::POST, PathAndQuery::from_static(NOWHERE));
    let post = post.over_tls();
    let asked = post.clone().from_origin(&ours);
    let status = match ask(service, Cluster::New, &asked, BODY).await {
        Ok(answered) => answered.status(),
        Err(fault) => {
            return Finding::warn("origin", format!("POST {NOWHERE}: {fault}"), "see the log of the new gateway");
        }
    };
    let found = format!("POST {NOWHERE} with Origin {ours} \u{2192} {}", status.as_u16());
    if status != StatusCode::FORBIDDEN {
        return Finding::ok("origin", found);
    }
    let theirs = format!("https://{}", service.config.new_host);
    let control = ask(service, Cluster::New, &post.from_origin(&theirs), BODY).await.map(|answered| answered.status());
    match control {
        Ok(status) if status != StatusCode::FORBIDDEN => {
            let found = format!("{found}, with Origin {theirs} \u{2192} {}: a CSRF check", status.as_u16());
            Finding::fail(
                "origin",
                found,
                "set headers.rewrite_origin: true, or let the application trust the old host",
            )
        }
        _ => Finding::ok("origin", format!("{found}, as for any Origin")),
    }
}
