//! Nothing that a client keeps secret may be found where operators look.

use base64::Engine;

use crate::support::cli::{Server, finish, program, run};
use crate::support::client::Http2;
use crate::support::origin::{Answer, refused_port};
use crate::support::setup::{Clusters, Setup};
use crate::support::{PATIENCE, eventually};

const HOST: &str = "a.old.test";

/// Values that would be unmistakable anywhere.
const PASSWORD: &str = "hunter2-hunter2-hunter2";
const SESSION: &str = "session-3f1a9c77e2";
const SIGNATURE: &str = "c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";
const API_KEY: &str = "key-77aa88bb99cc";
const ANSWER_COOKIE: &str = "issued-5e5e5e5e";
/// A sticky key decides by its value, and the value may be a person's.
const USER: &str = "alice.doe.19700101";

fn token() -> String {
    let part = |text: &str| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{SIGNATURE}", part("{\"alg\":\"HS256\"}"), part(&format!("{{\"sub\":\"{USER}\"}}")))
}

#[track_caller]
fn assert_clean(place: &str, text: &str) {
    let token = token();
    let payload = token.split('.').nth(1).unwrap();
    for secret in [PASSWORD, SESSION, SIGNATURE, API_KEY, ANSWER_COOKIE, USER, payload] {
        assert!(!text.contains(secret), "{place} shows {secret}: {text}");
    }
}

#[test]
fn logs_status_metrics_errors_and_explanations_show_no_secret() {
    let clusters = Clusters::new();
    clusters.old.otherwise(Answer::side().header("Set-Cookie", &format!("id={ANSWER_COOKIE}; Domain=.new.test")));
    clusters.new.otherwise(Answer::status(503).header("Set-Cookie", &format!("id={ANSWER_COOKIE}; Domain=.new.test")));
    let service = clusters.service("a").with(
        "migration: {percentage: 50, sticky: {by: [\"header:X-User-Id\", \"cookie:session\", \"jwt:sub\"]}}
canary:
  header_rules: [{header: Authorization, prefix: Basic, target: new_cluster}]
  cookie_rules: [{cookie: session, value: nobody, target: new_cluster}]
fallback: {max_failures: 3}",
    );
    let dead = clusters.service("dead").old_backend(format!("127.0.0.1:{}", refused_port()));
    let setup = Setup::new([service, dead]).log("level: trace").log("access: json");
    let mut server = Server::start(&setup);

    let bearer = format!("Bearer {}", token());
    let basic = format!("Basic {PASSWORD}");
    let cookie = format!("session={SESSION}; other=1");
    let sent: [&[(&str, &str)]; 4] = [
        &[("X-User-Id", USER)],
        &[("Authorization", &bearer), ("X-Api-Key", API_KEY)],
        &[("Authorization", &basic), ("Proxy-Authorization", &basic)],
        &[("Cookie", &cookie), ("X-Forwarded-For", "203.0.113.1")],
    ];
    for headers in sent.iter().cycle().take(12) {
        server.get_with(HOST, "/", headers);
        for host in ["nobody.test", "dead.old.test"] {
            let own = server.get_with(host, "/", headers);
            assert_clean("our own answer", &own.text());
        }
    }
    let second = Http2::plain(server.addresses.http);
    for headers in sent {
        let mut request = http::Request::get(format!("http://{HOST}/"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        second.exchange(request.body(bytes::Bytes::new()).unwrap()).unwrap();
    }
    drop(second);
    let mut broken = server.client();
    broken.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: {SESSION}\r\nAuthorization {PASSWORD}\r\n\r\n"));
    assert_clean("a refusal", &String::from_utf8_lossy(&broken.rest().unwrap_or_default()));
    eventually(PATIENCE, "the access lines are written", || server.access_lines().len() >= 36);

    for target in ["/status", "/metrics", "/", "/ready", "/health", "/api/v1/history", "/api/v1/callers"] {
        assert_clean(target, &server.admin(target).text());
    }
    for field in [format!("X-User-Id:{USER}"), format!("Authorization:{basic}"), format!("Cookie:{cookie}")] {
        let field = field.replace(' ', "%20").replace(';', "%3B").replace('=', "%3D");
        let answer = server.admin(&format!("/api/v1/explain?host={HOST}&header={field}"));
        assert_eq!(answer.status, 200);
        assert_clean("the explanation", &answer.text());
    }
    let url = server.admin_url();
    let config = server.file.path().display().to_string();
    let authorization = format!("Authorization: {bearer}");
    let cookie_header = format!("Cookie: {cookie}");
    let user = format!("X-User-Id: {USER}");
    for place in [["--admin", &url], ["-c", &config]] {
        for form in [&[][..], &["--json"]] {
            for fields in [[&authorization, &cookie_header], [&authorization, &user]] {
                let fields = fields.map(|field| ["--header", field.as_str()]).concat();
                let explained = run(&[&["explain", "--host", HOST][..], &fields, &place, form].concat());
                explained.expect(0);
                assert_clean("explain", &explained.all());
            }
        }
    }
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    assert!(server.stderr().contains("request failed"), "the level is in force: {}", server.stderr());
    assert_clean("the access log", &server.access_lines().join("\n"));
    assert_clean("the audit log", &server.audit_lines().join("\n"));
    assert_clean("the control log", &server.stderr());
    assert_clean("stdout", &server.stdout());
}

#[test]
fn the_environment_s_secrets_stay_out_of_error_messages() {
    let file = crate::support::cli::Scratch::new(format!(
        "services:\n  - name: a\n    old_host: a.old.test\n    old_backend: 127.0.0.1:80\n    new_host: ${{HOST_NAME}}\n    migration: {{percentage: {PASSWORD_VARIABLE}}}\n"
    ));
    let mut command = program();
    command.arg("check").arg(file.path()).env("HOST_NAME", "a.new.test").env("SECRET_NUMBER", PASSWORD);

    let finished = finish(command);

    finished.expect(3);
    assert_clean("check", &finished.all());
}

const PASSWORD_VARIABLE: &str = "${SECRET_NUMBER}";
