//! `headers.rewrite_origin` on the wire: what new and old see of a page's origin, and what clients see of new's.

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::client::Client;
use crate::support::origin::{Answer, refused_port};
use crate::support::setup::{Clusters, Setup};

const PAGE: [(&str, &str); 2] =
    [("Origin", "https://a.old.test"), ("Referer", "https://a.old.test/page?u=https://a.old.test/")];

#[test]
fn origins_are_mapped_towards_new_and_back_where_it_is_asked_for() {
    let clusters = Clusters::new();
    let answer = Answer::side()
        .header("Access-Control-Allow-Origin", "https://a.new.test")
        .header("Link", "<https://a.new.test/n>; rel=next")
        .header("Content-Security-Policy", "connect-src 'self' https://a.new.test wss://a.new.test")
        .header("Content-Security-Policy-Report-Only", "img-src a.new.test");
    clusters.new.otherwise(answer.clone());
    clusters.old.otherwise(answer);
    let public = Authority::new("old hosts");
    let trust = public.trusting(&["http/1.1"]);
    let start = |percentage: u8, rewrite: bool| {
        let headers = format!("headers: {{rewrite_origin: {rewrite}}}");
        let setup = Setup::new([clusters.service("a").percentage(percentage).with(&headers)]);
        Proxy::start(&setup.https(&public.server(&["a.old.test"])))
    };

    for (percentage, rewrite, mapped) in [(100, true, true), (100, false, false), (0, true, false)] {
        let proxy = start(percentage, rewrite);
        let mut client = Client::tls(proxy.addresses.https.unwrap(), "a.old.test", &trust);

        let response = client.get_with("a.old.test", "/", &PAGE);

        let seen = if percentage == 100 { clusters.new.last() } else { clusters.old.last() };
        let (there, back) = if mapped { ("new", "old") } else { ("old", "new") };
        let there = format!("https://a.{there}.test");
        assert_eq!(seen.header("origin"), Some(there.as_str()));
        assert_eq!(seen.header("referer"), Some(format!("{there}/page?u=https://a.old.test/").as_str()));
        let back = format!("a.{back}.test");
        for (name, expected) in [
            ("access-control-allow-origin", format!("https://{back}")),
            ("link", format!("<https://{back}/n>; rel=next")),
            ("content-security-policy", format!("connect-src 'self' https://{back} wss://{back}")),
            ("content-security-policy-report-only", format!("img-src {back}")),
        ] {
            assert_eq!(response.header(name), Some(expected.as_str()), "{percentage} {rewrite}");
        }
    }
}

#[test]
fn old_sees_what_the_client_sent_after_a_failed_try_on_new() {
    let clusters = Clusters::new();
    let service = clusters.service("a").percentage(100).with("headers: {rewrite_origin: true}");
    let proxy = Proxy::start(&Setup::new([service.new_backend(format!("127.0.0.1:{}", refused_port()))]));

    for method in ["GET", "POST"] {
        let page = [("Origin", "http://a.old.test"), ("Referer", "http://a.new.test/")];
        let response = proxy.client().exchange(method, "a.old.test", "/", &page, b"").unwrap();

        assert_eq!(response.side(), Some("old"));
        let seen = clusters.old.last();
        assert_eq!((seen.header("origin"), seen.header("referer")), (Some(page[0].1), Some(page[1].1)));
    }
}
