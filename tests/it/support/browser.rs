//! A real Chromium without a screen, driven through chromedriver's WebDriver interface.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Client;
use super::peers::{available, find};

/// For one command; a browser on a busy machine takes its time.
const LIMIT: Duration = Duration::from_secs(60);

const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,900",
];

/// Whether there is a browser; says aloud, or fails under `REQUIRE_PEERS=1`, when there is none.
#[track_caller]
pub fn is_there() -> bool {
    available(&["chromium", "chromedriver"])
}

/// A browser with a profile of its own and one window.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: TempDir,
}

/// What the page asked for and what the browser complained about since the last look.
#[derive(Debug, Default)]
pub struct Heard {
    /// Every address that was asked for.
    pub requests: Vec<String>,
    /// Every line of the console that is a warning or worse.
    pub complaints: Vec<String>,
}

impl Browser {
    /// Starts it.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(json!({}))
    }

    /// Starts it with these settings of Chromium.
    #[track_caller]
    pub fn start_with(preferences: Value) -> Self {
        let profile = TempDir::new().unwrap();
        let mut driver = Command::new(find("chromedriver").expect("the caller looked for it"))
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        let mut port = None;
        for line in output.by_ref().lines() {
            port = line.unwrap().strip_suffix('.').and_then(|line| line.rsplit_once("on port ")?.1.parse().ok());
            if port.is_some() {
                break;
            }
        }
        // Its pipe must not fill; the thread ends with the driver.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.expect("chromedriver names its port")));
        let profile_flag = format!("--user-data-dir={}", profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([profile_flag.as_str()]).collect();
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let wanted = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "goog:chromeOptions": {"args": flags, "prefs": preferences, "binary": find("chromium").unwrap()},
        });
        let made = browser.command("POST", "/session", &json!({"capabilities": {"alwaysMatch": wanted}}));
        browser.session = format!("/session/{}", made["sessionId"].as_str().expect("a session"));
        browser
    }

    #[track_caller]
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut client = Client::plain(self.address);
        client.patience(LIMIT);
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let headers = [("Content-Type", "application/json")];
        let answer = client.exchange(method, &self.address.to_string(), path, &headers, body.as_bytes());
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let mut json = answer.json();
        assert_eq!(answer.status, 200, "{method} {path}: {json}");
        json["value"].take()
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        self.command("POST", &format!("{}{path}", self.session), &body)
    }

    /// Opens this address; returns when it is loaded.
    #[track_caller]
    pub fn open(&self, url: &str) -> &Self {
        self.post("/url", json!({"url": url}));
        self
    }

    /// Opens the present address again.
    #[track_caller]
    pub fn reload(&self) -> &Self {
        self.post("/refresh", json!({}));
        self
    }

    /// The value of a JavaScript function's body.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []}))
    }

    /// The same for a body that calls its last argument with the value.
    #[track_caller]
    pub fn run_until_called(&self, script: &str) -> Value {
        self.post("/execute/async", json!({"script": script, "args": []}))
    }

    /// A command of the DevTools protocol.
    #[track_caller]
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": parameters}))
    }

    /// Makes the page so wide, and a phone when that is narrow.
    #[track_caller]
    pub fn resize(&self, width: u32) -> &Self {
        let is_phone = width < 600;
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": is_phone});
        self.devtools("Emulation.setDeviceMetricsOverride", size);
        self
    }

    /// Everything visible, as text.
    #[track_caller]
    pub fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// What has happened since the last look.
    #[track_caller]
    pub fn heard(&self) -> Heard {
        let mut heard = Heard::default();
        for entry in self.post("/se/log", json!({"type": "browser"})).as_array().unwrap() {
            if matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")) {
                heard.complaints.push(entry["message"].as_str().unwrap_or_default().to_owned());
            }
        }
        for entry in self.post("/se/log", json!({"type": "performance"})).as_array().unwrap() {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let message = &message["message"];
            let document = message["params"]["documentURL"].as_str().unwrap_or_default();
            // A new window begins with a page of the browser's own.
            if message["method"] == "Network.requestWillBeSent" && !document.starts_with("chrome") {
                heard.requests.push(message["params"]["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
        }
        heard
    }

    /// Writes a picture of the whole page when `PAGE_SCREENSHOTS` names a folder.
    #[track_caller]
    pub fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("PAGE_SCREENSHOTS") else { return };
        let picture = self.devtools("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true}));
        let bytes = STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser's processes with the session; without one they have ended or never begun.
        if let (false, Ok(mut client)) = (self.session.is_empty(), Client::try_plain(self.address, None)) {
            let _ = client.exchange("DELETE", &self.address.to_string(), &self.session, &[], b"");
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
