//! The Prometheus text format: heads of families, samples and histograms, written into a growing string.

use std::fmt::{Display, Write};

use metrics_exporter_prometheus::formatting;

use super::metrics::Histogram;
use super::names::Family;

/// Names and values of labels, in the order written.
pub type Labels<'a> = [(&'a str, &'a str)];

/// Writes `# HELP` and `# TYPE`, once for each family.
pub fn push_head(out: &mut String, family: &Family) {
    formatting::write_help_line(out, family.name, None, None, family.help);
    formatting::write_type_line(out, family.name, None, None, family.kind.as_str());
}

/// Writes one sample.
pub fn push_sample(out: &mut String, name: &str, suffix: &str, labels: &Labels<'_>, value: impl Display) {
    push_series(out, name, suffix, labels, None, value);
}

/// Writes buckets, sum and count. What is recorded meanwhile may be in the sum and not yet in the count.
pub fn push_histogram<const BOUNDS: usize, const COUNTS: usize>(
    out: &mut String,
    family: &Family,
    labels: &Labels<'_>,
    histogram: &Histogram<BOUNDS, COUNTS>,
) {
    let mut total = 0;
    for (index, count) in histogram.counts().into_iter().enumerate() {
        total += count;
        let bound = histogram.bounds().get(index);
        let bound = bound.map_or(f64::INFINITY, |nanoseconds| *nanoseconds as f64 / 1e9);
        push_series(out, family.name, "_bucket", labels, Some(bound), total);
    }
    push_series(out, family.name, "_sum", labels, None, histogram.sum().as_secs_f64());
    push_series(out, family.name, "_count", labels, None, total);
}

fn push_series(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &Labels<'_>,
    bound: Option<f64>,
    value: impl Display,
) {
    out.push_str(name);
    out.push_str(suffix);
    let mut separator = '{';
    for (label, value) in labels {
        out.push(separator);
        separator = ',';
        out.push_str(label);
        out.push_str("=\"");
        push_label_value(out, value);
        out.push('"');
    }
    // Writing to a string cannot fail.
    let _ = match bound {
        Some(bound) if bound.is_finite() => write!(out, "{separator}le=\"{bound}\""),
        Some(_) => write!(out, "{separator}le=\"+Inf\""),
        None => Ok(()),
    };
    if bound.is_some() || separator == ',' {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

/// The exporter's own escaping takes a backslash before a quote for an escape already made, which would let two values
/// become one.
fn push_label_value(out: &mut String, value: &str) {
    let mut rest = value;
    while let Some(index) = rest.find(['"', '\\', '\n']) {
        let (clean, special) = rest.split_at(index);
        out.push_str(clean);
        out.push_str(match special.as_bytes()[0] {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            _ => "\\n",
        });
        rest = &special[1..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::metrics::CONNECT_BOUNDS;
    use super::super::names::{Kind, UPSTREAM_CONNECT_DURATION};
    use super::*;

    #[test]
    fn samples_have_labels_only_when_there_are_some() {
        let mut out = String::new();
        push_sample(&mut out, "a", "", &[], 1);
        push_sample(&mut out, "a", "_sum", &[("x", "1"), ("y", "\\\"\n\\")], 0.5);
        assert_eq!(out, "a 1\na_sum{x=\"1\",y=\"\\\\\\\"\\n\\\\\"} 0.5\n");
    }

    #[test]
    fn a_family_starts_with_its_help_and_its_type() {
        let mut out = String::new();
        push_head(&mut out, &Family { name: "a_total", kind: Kind::Counter, help: "Things." });
        assert_eq!(out, "# HELP a_total Things.\n# TYPE a_total counter\n");
    }

    #[test]
    fn buckets_are_added_up_and_closed_by_infinity() {
        let histogram = Histogram::<7, 8>::new(&CONNECT_BOUNDS);
        for millis in [0, 1, 2, 100, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }

        let mut out = String::new();
        push_histogram(&mut out, &UPSTREAM_CONNECT_DURATION, &[("phase", "dns")], &histogram);

        let expected: String = [
            ("bucket", ",le=\"0.001\"", "2"),
            ("bucket", ",le=\"0.005\"", "3"),
            ("bucket", ",le=\"0.025\"", "3"),
            ("bucket", ",le=\"0.1\"", "4"),
            ("bucket", ",le=\"0.5\"", "4"),
            ("bucket", ",le=\"1\"", "4"),
            ("bucket", ",le=\"5\"", "4"),
            ("bucket", ",le=\"+Inf\"", "5"),
            ("sum", "", "60.103"),
            ("count", "", "5"),
        ]
        .map(|(suffix, bound, value)| {
            format!("{}_{suffix}{{phase=\"dns\"{bound}}} {value}\n", UPSTREAM_CONNECT_DURATION.name)
        })
        .concat();
        assert_eq!(out, expected);
    }
}
