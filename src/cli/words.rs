//! Numbers as people read them, with their units: durations, rates, shares, latencies.

use std::time::Duration;

/// The two largest parts: `2 m 50 s`, `1 d 3 h`, `40 s`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let Some(first) = parts.iter().position(|(number, _)| *number > 0) else { return "0 s".to_owned() };
    let shown = parts.iter().skip(first).take(2).filter(|(number, _)| *number > 0);
    shown.map(|(number, unit)| format!("{number} {unit}")).collect::<Vec<_>>().join(" ")
}

/// Groups of three digits: `12 345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Requests in a second: `1 240/s`, `3.3/s`, `-` for none.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "-".to_owned(),
        rate if rate < 0.05 => "<0.1/s".to_owned(),
        rate if rate < 9.95 => format!("{rate:.1}/s"),
        rate => format!("{}/s", count(rate.round() as u64)),
    }
}

/// A share as it was declared: `25 %`, `12.5 %`.
pub fn share(percent: f64) -> String {
    format!("{} %", (percent * 100.0).round() / 100.0)
}

/// A measured part of a whole: `0.02 %`, `38.1 %`, `-` of nothing.
pub fn part(some: u64, all: u64) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    match some as f64 * 100.0 / all as f64 {
        0.0 => "0 %".to_owned(),
        percent if percent < 0.005 => "<0.01 %".to_owned(),
        percent if percent < 10.0 => format!("{percent:.2} %"),
        percent if percent > 99.95 => "100 %".to_owned(),
        percent => format!("{percent:.1} %"),
    }
}

/// A latency in seconds: `4.2 ms`, `38 ms`, `1.25 s`; `-` when it is unknown.
pub fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        // The last bucket that is measured ends here.
        Some(seconds) if seconds >= 10.0 => ">10 s".to_owned(),
        Some(seconds) if seconds >= 0.9995 => format!("{seconds:.2} s"),
        Some(seconds) if seconds >= 0.00995 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) => format!("{:.1} ms", seconds * 1e3),
    }
}

/// `1 service`, `2 services`.
pub fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(number as u64), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_parts() {
        for (seconds, expected) in [
            (0, "0 s"),
            (40, "40 s"),
            (170, "2 m 50 s"),
            (120, "2 m"),
            (3600, "1 h"),
            (3605, "1 h"),
            (97_200, "1 d 3 h"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }

    #[test]
    fn counts_and_rates_have_groups_and_units() {
        for (number, expected) in [(0, "0"), (999, "999"), (1240, "1 240"), (1_234_567, "1 234 567")] {
            assert_eq!(count(number), expected);
        }
        for (number, expected) in
            [(0.0, "-"), (0.01, "<0.1/s"), (3.333, "3.3/s"), (9.96, "10/s"), (310.4, "310/s"), (1240.0, "1 240/s")]
        {
            assert_eq!(rate(number), expected);
        }
    }

    #[test]
    fn parts_keep_what_matters() {
        for (some, all, expected) in [
            (0, 0, "-"),
            (0, 10, "0 %"),
            (1, 1_000_000, "<0.01 %"),
            (2, 10_000, "0.02 %"),
            (381, 1000, "38.1 %"),
            (10, 10, "100 %"),
        ] {
            assert_eq!(part(some, all), expected);
        }
        for (percent, expected) in [(25.0, "25 %"), (12.5, "12.5 %"), (0.01, "0.01 %"), (100.0, "100 %")] {
            assert_eq!(share(percent), expected);
        }
    }

    #[test]
    fn latencies_change_their_unit() {
        for (seconds, expected) in
            [(0.0042, "4.2 ms"), (0.038, "38 ms"), (1.25, "1.25 s"), (0.9999, "1.00 s"), (10.0, ">10 s")]
        {
            assert_eq!(latency(Some(seconds)), expected);
        }
        assert_eq!(latency(None), "-");
    }
}
