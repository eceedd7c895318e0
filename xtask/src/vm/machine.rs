//! One virtual machine: without privileges, network or disk. It sees the host's files, read-only,
//! by 9P; what it writes stays in its memory.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{accel::Accel, board::Board, kernel::Kernel, layer::Layers};
use crate::sh;

/// A guest that fills its memory is what we want to see fail, not the host.
const MEMORY: &str = "2500";

/// A running machine; killed on drop.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    output: Receiver<Vec<u8>>,
    complaints: Option<JoinHandle<String>>,
    started: Instant,
}

/// QEMU's command but for its serial lines and shared files; more may be put on the kernel's
/// command line.
pub fn qemu(
    layers: &Layers,
    accel: Accel,
    kernel: &Kernel,
    initrd: &Path,
    more: &str,
) -> Result<Command> {
    let board = Board::of(layers.arch)?;
    let mut qemu = layers.host.command(board.qemu.program)?;
    for folder in layers.host.firmware() {
        qemu.arg("-L").arg(folder);
    }
    // Two processors, so that what goes wrong between two goes wrong here too.
    qemu.args(["-machine", board.machine])
        .args(accel.arguments(board.processor))
        .args(["-smp", "2", "-m", MEMORY])
        .args(["-nodefaults", "-no-user-config", "-nic", "none"])
        .args(["-display", "none", "-monitor", "none"])
        // With `panic=-1` a panic ends the machine.
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        // An emulated machine, or one whose host is busy, is slow: what looks for processors that
        // stand still would find them.
        .arg(format!(
            "{} panic=-1 nokaslr nowatchdog rcupdate.rcu_cpu_stall_suppress=1 \
             sysrq_always_enabled=1 loglevel=5 {more}",
            board.parameters
        ));
    Ok(qemu)
}

/// Its serial lines: the kernel's console into a file, and one for the tests to QEMU's stdout.
pub fn lines(qemu: &mut Command, layers: &Layers, console: &Path) -> Result<()> {
    qemu.arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-chardev", "stdio,id=tests,signal=off"])
        .args(Board::of(layers.arch)?.line);
    Ok(())
}

/// A folder that the guest sees under this name.
pub fn share(qemu: &mut Command, name: &str, folder: &Path) -> Result<()> {
    let path = folder
        .to_str()
        .filter(|path| !path.contains(','))
        .with_context(|| format!("{}: QEMU takes no such path", folder.display()))?;
    qemu.arg("-virtfs").arg(format!(
        "local,path={path},mount_tag={name},security_model=none,readonly=on,multidevs=remap"
    ));
    Ok(())
}

/// Starts it; what it says is what QEMU writes on stdout, what it is told is what QEMU reads on stdin.
pub fn start(qemu: &mut Command) -> Result<Machine> {
    let mut child = qemu
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", sh::shown(qemu)))?;
    let mut output = child.stdout.take().context("QEMU has no output")?;
    let mut complaints = child.stderr.take().context("QEMU has no stderr")?;
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // What could not be read is no more than a worse message.
        let _ = complaints.read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let (sender, receiver) = channel();
    // Ends with the machine.
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = output.read(&mut bytes) {
            if sender.send(bytes[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    Ok(Machine {
        child,
        output: receiver,
        complaints: Some(complaints),
        started: Instant::now(),
    })
}

impl Machine {
    /// What it says next, as text with plain line ends.
    pub fn more(&mut self, limit: Duration) -> Result<Option<String>> {
        let bytes = self.bytes(limit)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")))
    }

    /// What it says next; nothing once it has ended, an error where it is silent for too long.
    pub fn bytes(&mut self, limit: Duration) -> Result<Option<Vec<u8>>> {
        match self.output.recv_timeout(limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("silent for {limit:?}"),
        }
    }

    /// Once it has nothing more to say: how QEMU itself failed, and what it said of it. A guest that ends, however,
    /// is no failure of QEMU's.
    pub fn failure(&mut self) -> Result<Option<String>> {
        let status = self.child.wait().context("failed to wait for QEMU")?;
        if status.success() {
            return Ok(None);
        }
        let said = self.complaints.take().and_then(|thread| thread.join().ok());
        let said = said.unwrap_or_default();
        Ok(Some(format!("QEMU ended ({status}): {said}")))
    }

    /// Where it is told something; given once.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

/// What a machine's kernel said; a machine that never began has no such file.
pub fn said(console: &Path) -> Result<String> {
    match fs::read(console) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).replace('\r', "")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", console.display())),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_dies_tells_why() {
        let limit = Duration::from_secs(10);
        let mut qemu = Command::new("sh");
        qemu.args(["-c", "echo 'no such machine' >&2; exit 1"]);
        let mut machine = start(&mut qemu).unwrap();
        assert_eq!(machine.more(limit).unwrap(), None);
        assert_eq!(
            machine.failure().unwrap().as_deref(),
            Some("QEMU ended (exit status: 1): no such machine")
        );
        let mut machine = start(Command::new("sh").args(["-c", "echo up"])).unwrap();
        assert_eq!(machine.more(limit).unwrap().as_deref(), Some("up\n"));
        assert_eq!(machine.more(limit).unwrap(), None);
        assert_eq!(machine.failure().unwrap(), None);
    }

    #[test]
    fn a_machine_that_never_began_said_nothing() {
        assert_eq!(said(Path::new("/nowhere/console.log")).unwrap(), "");
    }
}
