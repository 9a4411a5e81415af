//! What the system tells about this process: its use of time, memory and descriptors, and the limits of its cgroup.
//! All of it is read from files, so a value that a system does not have is just absent.

use std::fs;
use std::path::{Path, PathBuf};

/// The unit of times in `/proc`. Linux fixed it for all programs at 100 per second, whatever the kernel's own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// A reading of `/proc/self`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// When the process started, in seconds since 1970.
    pub start_time: Option<f64>,
    /// Resident memory in bytes.
    pub resident: Option<f64>,
    /// Virtual memory in bytes.
    pub virtual_memory: Option<f64>,
    /// Open descriptors.
    pub open_fds: Option<f64>,
    /// How many there may be.
    pub max_fds: Option<f64>,
}

impl Usage {
    /// Reads them below `root`, which is `/` outside of tests.
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (stat, status) = (text("proc/self/stat"), text("proc/self/status"));
        let boot = line_after(&text("proc/stat"), "btime ").and_then(|value| value.trim().parse::<f64>().ok());
        let kibibytes = |name| Some(first_number(line_after(&status, name)?)? * 1024.0);
        Self {
            cpu_seconds: stat_ticks(&stat, 14).zip(stat_ticks(&stat, 15)).map(|(user, system)| user + system),
            start_time: boot.zip(stat_ticks(&stat, 22)).map(|(boot, since)| boot + since),
            resident: kibibytes("VmRSS:"),
            virtual_memory: kibibytes("VmSize:"),
            // The listing itself holds one.
            open_fds: fs::read_dir(root.join("proc/self/fd")).ok().map(|fds| fds.count().saturating_sub(1) as f64),
            max_fds: line_after(&text("proc/self/limits"), "Max open files").and_then(first_number),
        }
    }
}

/// A time of `/proc/self/stat` in seconds, by its number in proc_pid_stat(5).
fn stat_ticks(stat: &str, number: usize) -> Option<f64> {
    // The second field is the command, which may hold anything; the third one follows its last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: f64 = fields.split_ascii_whitespace().nth(number - 3)?.parse().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

fn line_after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(start))
}

fn first_number(text: &str) -> Option<f64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The CPU quota of the cgroup, or of the narrowest one around it, in cores.
pub fn cpu_quota(root: &Path) -> Option<f64> {
    let version_2 = narrowest(root, "", "cpu.max", |folder| {
        let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
    });
    version_2.or_else(|| {
        narrowest(root, "cpu", "cpu.cfs_quota_us", |folder| {
            let read = |name| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<f64>().ok();
            Some(read("cpu.cfs_quota_us").filter(|quota| *quota > 0.0)? / read("cpu.cfs_period_us")?)
        })
    })
}

/// The memory limit of the cgroup, or of the narrowest one around it, else the machine's memory, in bytes.
pub fn memory_limit(root: &Path) -> Option<f64> {
    let machine = fs::read_to_string(root.join("proc/meminfo"))
        .ok()
        .and_then(|text| Some(first_number(line_after(&text, "MemTotal:")?)? * 1024.0));
    let limit = |controller, name: &'static str| {
        narrowest(root, controller, name, |folder| fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok())
    };
    let limit = limit("", "memory.max").or_else(|| limit("memory", "memory.limit_in_bytes"));
    // Version 1 says "none" with a number beyond all memory.
    match (limit, machine) {
        (Some(limit), Some(machine)) => Some(limit.min(machine)),
        (limit, machine) => limit.or(machine),
    }
}

/// The smallest value among our cgroup and those around it. `controller` is empty for version 2.
fn narrowest(root: &Path, controller: &str, file: &str, read: impl Fn(&Path) -> Option<f64>) -> Option<f64> {
    let mount = root.join("sys/fs/cgroup").join(controller);
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then(|| PathBuf::from(path.trim_start_matches('/')))
    });
    // Without a cgroup namespace of our own the path may not exist below our mount; its root still does.
    let own = own.filter(|own| mount.join(own).join(file).exists()).unwrap_or_default();
    own.ancestors().filter_map(|path| read(&mount.join(path))).reduce(f64::min)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn usage_is_read_from_proc() {
        let root = root(&[
            (
                "proc/self/stat",
                "42 (odd) name) S 1 42 42 0 -1 4194560 5 0 0 0 250 50 0 0 20 0 3 0 12345 999 88 18446744073709551615",
            ),
            ("proc/stat", "cpu  1 2 3\nbtime 1704110400\n"),
            ("proc/self/status", "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\n"),
            (
                "proc/self/limits",
                "Limit Soft Hard Units\nMax open files            1024                 4096       files\n",
            ),
            ("proc/self/fd/0", ""),
            ("proc/self/fd/1", ""),
            ("proc/self/fd/2", ""),
        ]);
        let expected = Usage {
            cpu_seconds: Some(3.0),
            start_time: Some(1_704_110_523.45),
            resident: Some(1_048_576.0),
            virtual_memory: Some(2_097_152.0),
            open_fds: Some(2.0),
            max_fds: Some(1024.0),
        };
        assert_eq!(Usage::read(root.path()), expected);
    }

    #[test]
    fn the_real_process_has_all_of_it() {
        let usage = Usage::read(Path::new("/"));
        assert!(
            usage.resident > Some(1e5) && usage.open_fds > Some(2.0) && usage.start_time > Some(1.6e9),
            "{usage:?}"
        );
    }

    #[test]
    fn nothing_is_known_without_files() {
        let root = root(&[]);
        assert_eq!(Usage::read(root.path()), Usage::default());
        assert_eq!((cpu_quota(root.path()), memory_limit(root.path())), (None, None));
    }

    #[test]
    fn limits_come_from_the_narrowest_cgroup() {
        let meminfo = ("proc/meminfo", "MemTotal:       8192 kB\n");
        for (what, files, cpu, memory) in [
            ("none", vec![], None, Some(8_388_608.0)),
            (
                "version 2 in a container",
                vec![
                    ("proc/self/cgroup", "0::/\n"),
                    ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
                    ("sys/fs/cgroup/memory.max", "1048576\n"),
                ],
                Some(1.5),
                Some(1_048_576.0),
            ),
            (
                "version 2, no limit",
                vec![
                    ("proc/self/cgroup", "0::/\n"),
                    ("sys/fs/cgroup/cpu.max", "max 100000\n"),
                    ("sys/fs/cgroup/memory.max", "max\n"),
                ],
                None,
                Some(8_388_608.0),
            ),
            (
                "version 2, nested",
                vec![
                    ("proc/self/cgroup", "0::/a/b\n"),
                    ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
                    ("sys/fs/cgroup/a/cpu.max", "200000 100000\n"),
                    ("sys/fs/cgroup/a/b/memory.max", "4096\n"),
                    ("sys/fs/cgroup/a/memory.max", "8192\n"),
                ],
                Some(2.0),
                Some(4096.0),
            ),
            (
                "version 1, path of the host",
                vec![
                    ("proc/self/cgroup", "4:cpu,cpuacct:/kubepods/x\n3:memory:/kubepods/x\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
                    ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(0.5),
                Some(8_388_608.0),
            ),
        ] {
            let root = root(&files.into_iter().chain([meminfo]).collect::<Vec<_>>());
            assert_eq!((cpu_quota(root.path()), memory_limit(root.path())), (cpu, memory), "{what}");
        }
    }
}
