//! Finds a configuration file that was mounted by itself, as `subPath` does: such a file never changes in the container,
//! whatever happens to the ConfigMap.

use std::fs;
use std::path::Path;

/// The warning for a file that is mounted by itself.
pub fn warning(file: &Path) -> Option<String> {
    let file = std::path::absolute(file).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    is_mounted_alone(&mounts, &file).then(|| {
        let file = file.display();
        format!("{file} is mounted as a single file (subPath), so changes never arrive: mount its directory instead")
    })
}

/// Whether proc_pid_mountinfo(5) lists the file itself as a mount point.
fn is_mounted_alone(mounts: &str, file: &Path) -> bool {
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| Path::new(&unescape(point)) == file)
}

/// Blanks and their like are written as a backslash and three octal digits.
fn unescape(point: &str) -> String {
    let mut parts = point.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => text.push_str(part),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = r"22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 8:1 /pods/1/volumes/config /etc/migration-proxy rw - ext4 /dev/sda1 rw
31 22 8:1 /pods/1/volume-subpaths/config/0 /etc/app/migration.yaml ro - ext4 /dev/sda1 rw
32 22 8:1 /x /etc/my\040app/migration.yaml ro - ext4 /dev/sda1 rw";

    #[test]
    fn only_a_file_that_is_a_mount_point_itself_is_mounted_alone() {
        for (file, expected) in [
            ("/etc/app/migration.yaml", true),
            ("/etc/my app/migration.yaml", true),
            ("/etc/migration-proxy/migration.yaml", false),
            ("/etc/migration.yaml", false),
        ] {
            assert_eq!(is_mounted_alone(MOUNTS, Path::new(file)), expected, "{file}");
        }
    }
}
