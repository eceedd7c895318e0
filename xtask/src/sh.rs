//! Running other programs, and what every verb needs to know of its surroundings.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Says on stderr what is being done; stdout is for data.
pub fn step(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    // At run time first: the checkout may have been moved since xtask was compiled.
    let here = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent()
        .map_or_else(|| here.clone(), Path::to_path_buf)
}

/// Everything is built under here, whatever the user's cargo settings say: paths in messages and
/// in `tracer/build.rs` count on it.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The cargo that runs this xtask, in the workspace's folder.
pub fn cargo() -> Command {
    let mut cargo = Command::new(cargo_path());
    cargo
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target())
        // The build of the product must not see the switch that opens nightly features: build
        // scripts of common crates probe for them.
        .env_remove("RUSTC_BOOTSTRAP");
    // The cargo that started xtask sets these of xtask's own package; ring's build script looks at
    // them, and would make everything above it anew whenever cargo is called now here, now there.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

pub fn cargo_path() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from(env!("CARGO")), PathBuf::from)
}

/// Makes a command independent of the toolchain that rustup chose for this xtask.
pub fn without_rustup(command: &mut Command) -> &mut Command {
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        // rustup and cargo put their own toolchain's libraries here.
        .env_remove("LD_LIBRARY_PATH")
}

pub fn is_root() -> Result<bool> {
    // The owner of a process's folder in /proc is its effective user.
    let me = fs::metadata("/proc/self").context("failed to read /proc/self; mount /proc")?;
    Ok(me.uid() == 0)
}

/// Where a program is, in `PATH` and the administrator's folders that a user's `PATH` may lack.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// The command as one would type it.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with our own input and output.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    checked(command, status)
}

/// Runs a command and returns what it wrote on stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({}): {}",
        shown(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command and shows what it wrote only if it fails.
pub fn quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    if !output.status.success() {
        for text in [&output.stdout, &output.stderr] {
            eprint!("{}", String::from_utf8_lossy(text));
        }
    }
    checked(command, output.status)
}

/// Runs a command and ends it when the time is up.
pub fn status_within(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start `{}`", shown(command)))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("`{}` took more than {limit:?}", shown(command));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn checked(command: &Command, status: ExitStatus) -> Result<()> {
    ensure!(status.success(), "`{}` failed ({status})", shown(command));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended() {
        let start = Instant::now();
        let limit = Duration::from_millis(100);
        let error = status_within(Command::new("sleep").arg("60"), limit).unwrap_err();
        assert_eq!(error.to_string(), "`sleep 60` took more than 100ms");
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("exit status: 3): no"), "{error}");
    }
}
