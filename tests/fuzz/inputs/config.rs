//! The text of a configuration file.

use migration_proxy::config::{self, Environment, Severity, Text};
use migration_proxy::routing::header_plan::HeaderPlan;

/// A longer text only takes longer.
const LONGEST: usize = 32 * 1024;

/// A text is a configuration that can be used, or a list of mistakes that lie inside of it; twice the same.
pub fn config(bytes: &[u8]) {
    let Ok(content) = std::str::from_utf8(bytes) else { return };
    if content.len() > LONGEST {
        return;
    }
    let text = Text::new("fuzz.yaml", content);
    let environment = Environment::from([("NAME".to_owned(), "value".to_owned()), ("EMPTY".to_owned(), String::new())]);

    let parsed = config::parse(&text, &environment);
    let again = config::parse(&text, &environment);

    let problems = match (&parsed, &again) {
        (Ok(parsed), Ok(again)) => {
            assert_eq!(format!("{:?}", parsed.config), format!("{:?}", again.config));
            assert!(!parsed.config.services.is_empty(), "a file without services is a mistake");
            assert!(parsed.warnings.iter().all(|problem| problem.severity == Severity::Warning));
            for service in &parsed.config.services {
                assert!(!service.old_host.is_empty() && !service.name.is_empty());
                HeaderPlan::compile(service);
            }
            &parsed.warnings
        }
        (Err(error), Err(again)) => {
            assert_eq!(error.problems, again.problems);
            assert!(error.problems.iter().any(|problem| problem.severity == Severity::Error), "nothing is said");
            assert!(!error.to_string().is_empty());
            &error.problems
        }
        _ => panic!("the same text is once a configuration and once not"),
    };
    let lines = content.split('\n').count() + 1;
    for problem in problems {
        assert!(problem.line as usize <= lines, "{problem:?} of {lines} lines");
        assert!((problem.line == 0) == (problem.column == 0), "{problem:?}");
        assert!(!problem.message.is_empty() && !problem.message.contains('\n'), "{problem:?}");
    }
}
