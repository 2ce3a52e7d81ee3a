//! CPU time and memory of the processes under test, from the operating system.

use std::time::Duration;

use anyhow::Context as _;

use super::plan::Side;

/// What processes have used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    /// CPU time since their start, user and system together.
    pub(super) cpu: Duration,
    /// Memory they occupy now.
    pub(super) resident_bytes: u64,
}

impl Usage {
    fn add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            resident_bytes: self.resident_bytes + other.resident_bytes,
        }
    }
}

/// One look at everything whose usage is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Snapshot {
    pub(super) server: Option<Usage>,
    pub(super) database: Option<Usage>,
    /// This process; absent where the operating system does not tell.
    pub(super) generator: Option<Usage>,
}

impl Snapshot {
    /// Looks at the processes of `side`.
    ///
    /// # Errors
    /// If a process is gone, or the operating system does not tell.
    pub(super) fn take(side: &Side) -> anyhow::Result<Self> {
        let mut server = None;
        for &pid in &side.server_pids {
            let usage = process(pid)?;
            server = Some(server.map_or(usage, |sum: Usage| sum.add(usage)));
        }
        let database = side.database_pid.map(family).transpose()?;
        Ok(Self { server, database, generator: own().ok() })
    }
}

fn own() -> anyhow::Result<Usage> {
    process(i32::try_from(std::process::id())?)
}

#[cfg(target_os = "linux")]
fn process(pid: i32) -> anyhow::Result<Usage> {
    let stat = procfs::process::Process::new(pid)
        .and_then(|process| process.stat())
        .with_context(|| format!("cannot read the usage of process {pid}"))?;
    Ok(usage(&stat, stat.utime + stat.stime))
}

/// A process with all its descendants, those that have ended included.
#[cfg(target_os = "linux")]
fn family(pid: i32) -> anyhow::Result<Usage> {
    let cannot_read = || format!("cannot read the usage of process {pid}");
    let root = procfs::process::Process::new(pid)
        .and_then(|process| process.stat())
        .with_context(cannot_read)?;
    // Children that have ended are in the sums of the parent that waited for them.
    let ended = |stat: &procfs::process::Stat| {
        u64::try_from(stat.cutime.saturating_add(stat.cstime)).unwrap_or(0)
    };
    let all: Vec<_> = procfs::process::all_processes()
        .with_context(cannot_read)?
        .filter_map(|process| process.and_then(|process| process.stat()).ok())
        .collect();
    let mut members = vec![pid];
    let mut sum = usage(&root, root.utime + root.stime + ended(&root));
    while let Some(parent) = members.pop() {
        for stat in all.iter().filter(|stat| stat.ppid == parent) {
            members.push(stat.pid);
            sum = sum.add(usage(stat, stat.utime + stat.stime + ended(stat)));
        }
    }
    Ok(sum)
}

#[cfg(target_os = "linux")]
fn usage(stat: &procfs::process::Stat, ticks: u64) -> Usage {
    let ticks_per_second = procfs::ticks_per_second().max(1);
    Usage {
        cpu: Duration::from_micros(ticks.saturating_mul(1_000_000) / ticks_per_second),
        resident_bytes: stat.rss * procfs::page_size(),
    }
}

#[cfg(not(target_os = "linux"))]
fn process(_pid: i32) -> anyhow::Result<Usage> {
    None.context("only Linux tells the usage of a process")
}

#[cfg(not(target_os = "linux"))]
fn family(pid: i32) -> anyhow::Result<Usage> {
    process(pid)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_cpu_and_memory() {
        let before = own().unwrap();
        assert!(before.resident_bytes > 100_000);
        let mut rounds = 0_u64;
        while own().unwrap().cpu < before.cpu + Duration::from_millis(50) {
            rounds += 1;
            assert!(rounds < 1_000_000, "the process looks idle");
        }
    }

    #[test]
    fn a_family_counts_its_children() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo ready; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 5];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        let children = || {
            let all = procfs::process::all_processes().unwrap();
            all.filter_map(|process| process.and_then(|process| process.stat()).ok())
                .filter(|stat| stat.ppid == pid)
                .map(|stat| stat.pid)
                .collect::<Vec<_>>()
        };
        // A child that is just turning into another program shows no memory for a moment.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let counted = loop {
            let alone = process(pid).unwrap().resident_bytes;
            if family(pid).unwrap().resident_bytes > alone {
                break true;
            }
            if std::time::Instant::now() > end {
                break false;
            }
            std::thread::yield_now();
        };
        for child in children() {
            let stopped = std::process::Command::new("kill").arg(child.to_string()).status();
            assert!(stopped.unwrap().success());
        }
        shell.wait().unwrap();
        assert!(counted, "the children's memory was never counted");
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let error = process(i32::MAX).unwrap_err();
        assert!(error.to_string().contains("cannot read the usage"), "{error}");
    }
}
