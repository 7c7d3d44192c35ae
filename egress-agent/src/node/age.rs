//! How long a process has lived.

use std::time::Duration;

/// Unit of the times in `/proc/<pid>/stat`: `USER_HZ` is 100 on all architectures that have BPF.
const TICK: Duration = Duration::from_millis(10);
/// Field `starttime`, counted from the one behind the name.
const STARTTIME: usize = 19;

/// None if the process has ended.
pub(super) fn age(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime = Duration::try_from_secs_f64(uptime.split(' ').next()?.parse().ok()?).ok()?;
    Some(uptime.saturating_sub(started(&stat)?))
}

/// Time between the machine's start and the process's (proc(5)).
fn started(stat: &str) -> Option<Duration> {
    // The name may hold spaces and parentheses; nothing behind it does.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u32 = fields.split(' ').nth(STARTTIME)?.parse().ok()?;
    Some(TICK * ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_does_not_matter() {
        let tail = "S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 1234 99";
        for name in ["sleep", "a) b", ") S 1"] {
            let found = started(&format!("42 ({name}) {tail}"));
            assert_eq!(found, Some(Duration::from_millis(12_340)), "{name}");
        }
        assert_eq!(started("42 (sleep) S 1"), None);
    }

    #[test]
    fn a_process_ages() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let young = age(child.id()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let older = age(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(young < Duration::from_secs(30), "{young:?}");
        assert!(
            older >= young + Duration::from_millis(250),
            "{young:?} {older:?}"
        );
        assert_eq!(age(child.id()), None);
    }
}
