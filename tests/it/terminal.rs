//! What belongs to the terminal: `status --watch`, what shells complete, and the man page.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::CommandFactory;
use clap_mangen::Man;
use migration_proxy::cli::Cli;

use crate::support::cli::{Background, Scratch, Server, finish, run};
use crate::support::eventually;
use crate::support::peers::available;
use crate::support::setup::{Clusters, Setup};

/// Two looks and some more.
const LOOKS: Duration = Duration::from_secs(20);

#[test]
fn status_is_shown_again_and_says_when_the_proxy_has_gone() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));
    let mut watching = Background::start(&["status", "--watch", "--admin", &server.admin_url()]);
    watching.wait_for_text("a        0 %", LOOKS);

    server.command(&["update", "a", "37"]).expect(0);
    watching.wait_for_text("a        37 % (file: 0 %)", LOOKS);
    drop(server);

    watching.wait_for_text("cannot reach the admin port", LOOKS);
    assert!(!watching.text().contains('\u{1b}'), "nothing steers what is no terminal");
}

/// What would clear the screen, name its window, or turn the direction of what follows.
const COMMANDS: [&str; 4] = [r"\e[2J", r"\e]0;x\a", r"\x9b2J", r"\u202e"];

#[track_caller]
fn assert_printable(shown: &str, what: &str) {
    let steers = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!shown.contains(steers), "{what}: {shown:?}");
}

#[test]
fn texts_of_files_and_arguments_cannot_steer_a_terminal() {
    let clusters = Clusters::new();
    let setup = Setup::new([clusters.service("a")]);
    let server = Server::start(&setup);
    let good = server.text(&setup);
    let with = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1)
    };

    let scratch = tempfile::tempdir().unwrap();
    let rejected = || server.metrics().sum("config_reloads_total", &[("result", "rejected")]);

    for command in COMMANDS {
        let written = command.replace(r"\e", "\u{1b}").replace(r"\a", "\u{7}").replace(r"\x9b", "\u{9b}");
        let written = written.replace(r"\u202e", "\u{202e}");
        for wrong in [
            with("name: a", &format!("name: \"a{command}b\"")),
            with("old_host: a.old.test", &format!("old_host: \"a{command}b.old.test\"")),
            with("new_host: a.new.test", &format!("\"{command}\": 1")),
            with("workers: 1", &format!("workers: \"{command}\"")),
            with("workers: 1", &format!("workers: {written}")),
            with("workers: 1", &format!("workers: 1 # {written}\nworkers: x")),
        ] {
            // No last good file is where this one looks for it.
            let scratch = Scratch::new(wrong.replace("/state\"", "/elsewhere\""));
            for flags in [&[][..], &["--json"], &["--against", &server.admin_url()]] {
                let told = scratch.check(flags);
                told.expect(3);
                // JSON has escapes of its own, but not for direction.
                let shown = if flags == ["--json"] { told.stderr.clone() } else { told.all() };
                assert_printable(&shown, &wrong);
            }
            let told = run(&["run", "-c", scratch.path().to_str().unwrap()]);
            assert_eq!(told.code, Some(3), "{told:?}");
            assert_printable(&told.all(), &wrong);
        }
        let before = rejected();
        server.file.swap(&with("name: a", &format!("name: \"a{command}b\"\n    \"{command}\": 1")));
        eventually(LOOKS, "it is rejected", || rejected() > before);
        assert_printable(&server.command(&["status"]).all(), command);
        for arguments in [
            &["update", &written, "5"][..],
            &["explain", "--host", &written],
            &["history", &written],
            &["rollback", "--config", &written],
        ] {
            let told = server.command(arguments);
            assert_ne!(told.code, Some(0), "{arguments:?}");
            assert_printable(&told.all(), &format!("{arguments:?}"));
        }
        let named = scratch.path().join(format!("{written}.yaml"));
        for (verb, text) in [
            (&["check"][..], None),
            (&["check"], Some(good.as_str())),
            (&["import", "--file"], None),
            (&["import", "--file"], Some("kind: X")),
            (&["import"], None),
        ] {
            let _ = fs::remove_file(&named);
            if let Some(text) = text {
                fs::write(&named, text).unwrap();
            }
            assert_printable(&run(&[verb, &[named.to_str().unwrap()]].concat()).all(), "the name of a file");
        }
    }
    assert_printable(&server.stderr(), "the log");
}

#[test]
fn programs_get_one_line_for_each_look() {
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));
    let watching = Background::start(&["status", "a", "--watch", "--json", "--admin", &server.admin_url()]);
    crate::support::eventually(LOOKS, "two looks", || watching.text().matches('\n').count() >= 2);
    for line in watching.text().lines().take(2) {
        let service: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(service["name"], "a");
    }
}

#[test]
fn on_a_terminal_it_is_drawn_over_what_stood_there() {
    if !available(&["script"]) {
        return;
    }
    let clusters = Clusters::new();
    let server = Server::start(&Setup::new([clusters.service("a")]));
    let directory = tempfile::tempdir().unwrap();
    let typescript = directory.path().join("typescript");
    let program = env!("CARGO_BIN_EXE_migration-proxy");
    let line =
        format!("stty cols 100 rows 40; TERM=xterm exec {program} status --watch --admin {}", server.admin_url());
    let mut script = Command::new("script")
        .args(["-q", "-f", "-c", &line])
        .arg(&typescript)
        .stdout(std::process::Stdio::null())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let text = || String::from_utf8_lossy(&fs::read(&typescript).unwrap_or_default()).into_owned();
    let wait = |what: &str| crate::support::eventually(LOOKS, what, || text().contains(what));
    wait("SHARE ON NEW");

    server.command(&["update", "a", "37"]).expect(0);
    wait("\u{1b}[4m37\u{1b}[24m");
    drop(server);
    wait("still trying");

    let shown = text();
    script.kill().unwrap();
    script.wait().unwrap();
    assert!(shown.contains("A\r\u{1b}[J"), "it is drawn over: {shown:?}");
    assert!(!shown.contains("\u{1b}[2J") && !shown.contains("\u{1b}[?1049h"), "the screen is left alone: {shown:?}");
}

#[test]
fn bash_completes_verbs_and_options() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("completion.bash");
    fs::write(&script, run(&["completion", "bash"]).expect(0)).unwrap();
    let complete = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let program = format!(
            "set -e; source {}; COMP_WORDS=(migration-proxy {}); COMP_CWORD={}; \
             known=$(complete -p migration-proxy); known=${{known#*-F }}; ${{known%% *}} migration-proxy \"${{COMP_WORDS[$COMP_CWORD]}}\" \"${{COMP_WORDS[$((COMP_CWORD-1))]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words.len()
        );
        let mut command = Command::new("bash");
        command.args(["--norc", "-c", &program]);
        finish(command).expect(0).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut syntax = Command::new("bash");
    syntax.arg("-n").arg(&script);
    finish(syntax).expect(0);

    assert_eq!(complete(&["up"]), ["update"]);
    let verbs = complete(&[""]);
    for verb in ["run", "check", "status", "doctor", "verify", "completion"] {
        assert!(verbs.iter().any(|known| known == verb), "{verb} in {verbs:?}");
    }
    assert_eq!(complete(&["status", "--wa"]), ["--watch"]);
    assert_eq!(complete(&["completion", "f"]), ["fish"]);
    assert_eq!(complete(&["safe-mode", "--re"]), ["--reason"]);
    let options = complete(&["verify", "--"]);
    assert!(options.contains(&"--method".to_owned()) && options.contains(&"--token-file".to_owned()), "{options:?}");
}

#[test]
fn other_shells_get_their_own_script() {
    assert!(run(&["completion", "zsh"]).expect(0).starts_with("#compdef migration-proxy\n"));
    assert!(run(&["completion", "fish"]).expect(0).contains("complete -c migration-proxy "));
    run(&["completion", "tcsh"]).expect(2);
}

/// The whole manual page: the program, then each verb.
fn manual() -> String {
    let mut command = Cli::command();
    command.build();
    let man = Man::new(command.clone()).date("").source("migration-proxy").manual("migration-proxy");
    let mut head = Vec::new();
    man.render_title(&mut head).unwrap();
    man.render_name_section(&mut head).unwrap();
    let mut page = String::from_utf8(head).unwrap() + &sections(&man, &command);
    for verb in command.get_subcommands() {
        let part = sections(&Man::new(verb.clone()), verb).replace(".SH ", ".SS ");
        page.push_str(&format!(".SH \"migration-proxy {}\"\n{part}", verb.get_name()));
    }
    page.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What is said of the program, and of each verb. Notes keep their lines.
fn sections(man: &Man, command: &clap::Command) -> String {
    let mut page = Vec::new();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    let mut page = String::from_utf8(page).unwrap();
    if let Some(notes) = command.get_after_help() {
        let escaped = notes
            .to_string()
            .replace('\\', "\\e")
            .replace('-', "\\-")
            .replace("\n'", "\n\\&'")
            .replace("\n.", "\n\\&.");
        page.push_str(&format!(".SH NOTES\n.nf\n{escaped}\n.fi\n"));
    }
    page
}

#[test]
fn the_manual_page_is_that_of_the_program() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/migration-proxy.1");
    let manual = manual();
    if std::env::var_os("UPDATE_MANUAL").is_some() {
        fs::write(&file, &manual).unwrap();
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == manual, "docs/migration-proxy.1 is out of date: UPDATE_MANUAL=1 cargo test --test it manual");
    if !available(&["groff"]) {
        return;
    }
    let mut groff = Command::new("groff");
    groff.args(["-k", "-man", "-ww", "-Tutf8"]).arg(&file);
    let finished = finish(groff);
    let text = finished.expect(0);
    assert_eq!(finished.stderr, "");
    assert!(text.contains("verify") && text.contains("rollback"), "{text}");
}
