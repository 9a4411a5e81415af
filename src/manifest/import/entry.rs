//! A service as it is written into the file.

use super::objects::{quoted, scalar};

/// A service as it will be written.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub name: String,
    pub old_host: String,
    /// More old hosts.
    pub aliases: Vec<String>,
    /// Stands above the old backend.
    pub remark: Option<String>,
    pub old_backend: Vec<String>,
    pub new_host: String,
    pub new_backend: String,
    pub percentage: String,
    pub redirect: Option<u16>,
    /// Written as they are.
    pub paths: Vec<String>,
    pub header_rules: Vec<String>,
    pub cookie_rules: Vec<String>,
    pub old: Vec<String>,
    pub new: Vec<String>,
    pub timeouts: Vec<String>,
    pub retry: Vec<String>,
    pub client_secret: Option<String>,
}

impl Draft {
    /// Writes it as an entry of `services`.
    pub(super) fn write(&self, out: &mut String) {
        out.push_str(&format!("  - name: {}\n", scalar(&self.name)));
        let mut line = |text: String| {
            out.push_str("    ");
            out.push_str(&text);
            out.push('\n');
        };
        match self.aliases.as_slice() {
            [] => line(format!("old_host: {}", scalar(&self.old_host))),
            aliases => {
                let all: Vec<String> =
                    std::iter::once(&self.old_host).chain(aliases).map(|host| quoted(host)).collect();
                line(format!("old_host: [{}]", all.join(", ")));
            }
        }
        if let Some(remark) = &self.remark {
            line(format!("# {remark}"));
        }
        match self.old_backend.as_slice() {
            [one] => line(format!("old_backend: {}", scalar(one))),
            many => {
                let all: Vec<String> = many.iter().map(|one| quoted(one)).collect();
                line(format!("old_backend: [{}]", all.join(", ")));
            }
        }
        line(format!("new_host: {}", scalar(&self.new_host)));
        line(format!("new_backend: {}", scalar(&self.new_backend)));
        if let Some(code) = self.redirect {
            line("mode: redirect".to_owned());
            line(format!("redirect: {{code: {code}}}"));
        }
        if !self.paths.is_empty() {
            line(format!("paths: [{}]", self.paths.join(", ")));
        }
        line(format!("migration: {{percentage: {}}}", self.percentage));
        if !self.header_rules.is_empty() || !self.cookie_rules.is_empty() {
            line("canary:".to_owned());
            for (key, rules) in [("header_rules", &self.header_rules), ("cookie_rules", &self.cookie_rules)] {
                if !rules.is_empty() {
                    line(format!("  {key}: [{}]", rules.join(", ")));
                }
            }
        }
        for (key, values) in
            [("old", &self.old), ("new", &self.new), ("timeouts", &self.timeouts), ("retry", &self.retry)]
        {
            if !values.is_empty() {
                line(format!("{key}: {{{}}}", values.join(", ")));
            }
        }
        if let Some(secret) = &self.client_secret {
            let folder = "/etc/migration-proxy-tls/client-mtls";
            line(format!("# The Secret {} mounted there:", secret.replace(char::is_control, " ")));
            line(format!(
                "# new: {{client_cert: {folder}/tls.crt, client_key: {folder}/tls.key, ca_file: {folder}/ca.crt}}"
            ));
        }
    }
}
