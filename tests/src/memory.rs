//! What a process takes of the machine, from `/proc`.

use std::fs;

fn kilobytes(pid: u32, field: &str) -> u64 {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or_else(|| panic!("{path} has no {field}"))
}

/// Resident memory, bytes.
pub fn resident(pid: u32) -> u64 {
    kilobytes(pid, "VmRSS") << 10
}

/// Resident memory, bytes; [`most_resident`] begins anew: a start reads a lot that is given back.
pub fn resident_from_now(pid: u32) -> u64 {
    // proc(5): resets the peak to what there is.
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
    resident(pid)
}

/// The most that it was, bytes: ever, or since [`resident_from_now`].
pub fn most_resident(pid: u32) -> u64 {
    kilobytes(pid, "VmHWM") << 10
}

/// Open file descriptors that are sockets.
pub fn sockets(pid: u32) -> usize {
    let path = format!("/proc/{pid}/fd");
    let all = fs::read_dir(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    all.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .filter(|to| to.to_string_lossy().starts_with("socket:"))
        .count()
}

/// Processor time so far, user and system, seconds.
pub fn processor_time(pid: u32) -> f64 {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    // The name in parentheses may hold anything; `utime` and `stime` are fields 14 and 15 (proc(5)).
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("times are numbers"))
        .sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}
