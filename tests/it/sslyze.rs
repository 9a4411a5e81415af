//! What a scanner finds at the TLS listener, judged by Mozilla's intermediate profile.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::app::Proxy;
use crate::support::certs::Authority;
use crate::support::cli::finish_within;
use crate::support::peers::{available, find};
use crate::support::setup::{Clusters, Setup};

const HOST: &str = "a.old.test";

/// A scan opens hundreds of connections, one after the other on a busy machine.
const SCAN: Duration = Duration::from_secs(180);

#[test]
fn sslyze_has_nothing_to_say_about_the_tls_listener() {
    if !available(&["sslyze"]) {
        return;
    }
    let (clusters, public) = (Clusters::new(), Authority::new("old hosts"));
    let setup = Setup::new([clusters.service("a")]).https(&public.server_for_ninety_days(&[HOST])).workers(2);
    let proxy = Proxy::start(&setup);
    let directory = TempDir::new().unwrap();
    let report = directory.path().join("report.json");

    let mut command = Command::new(find("sslyze").expect("it was looked for"));
    command
        .args(["--mozilla_config", "intermediate", "--sni", HOST, "--slow_connection"])
        .args(["--sslv2", "--sslv3", "--resum", "--early_data", "--fallback", "--certinfo", "--certinfo_ca_file"])
        .arg(public.file())
        .arg("--json_out")
        .arg(&report)
        .arg(proxy.addresses.https.unwrap().to_string());
    let finished = finish_within(command, SCAN);

    // Exit code 0: it complies with the profile.
    let text = finished.expect(0);
    assert!(text.contains(": OK - Compliant"), "{text}");
    let report: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let scan = &report["server_scan_results"][0]["scan_result"];
    let accepted = |version: &str| {
        let found = &scan[format!("{version}_cipher_suites")]["result"]["accepted_cipher_suites"];
        let suites = found.as_array().unwrap_or_else(|| panic!("no scan of {version}: {scan}"));
        suites.iter().map(|suite| suite["cipher_suite"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for version in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"] {
        assert_eq!(accepted(version), Vec::<String>::new(), "{version}");
    }
    for suite in accepted("tls_1_2") {
        let is_strong = suite.starts_with("TLS_ECDHE_") && (suite.contains("_GCM_") || suite.contains("CHACHA20"));
        assert!(is_strong, "{suite}");
    }
    assert!(!accepted("tls_1_2").is_empty() && accepted("tls_1_3").len() >= 3);
    let result = |command: &str| &scan[command]["result"];
    assert_eq!(result("heartbleed")["is_vulnerable_to_heartbleed"], false);
    assert_eq!(result("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"], false);
    assert_eq!(result("tls_compression")["supports_compression"], false);
    assert_eq!(result("tls_1_3_early_data")["supports_early_data"], false, "a replay would be a second request");
    assert_eq!(result("session_renegotiation")["is_vulnerable_to_client_renegotiation_dos"], false);
    assert_eq!(result("session_resumption")["session_id_resumption_result"], "FULLY_SUPPORTED");
    // Of tickets it says nothing true: it expects the ticket back that it sent, and gets a fresh one.
    assert_eq!(proxy.get(HOST, "/").side(), Some("old"), "it serves as before");
}
