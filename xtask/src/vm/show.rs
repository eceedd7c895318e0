//! One program in a machine, for somebody who watches: on the user's terminal, or into a pipe.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Accel, BOOT, Plan, Wanted, guest,
    kernel::Kernel,
    layer::Layers,
    machine::{self, Machine},
    results::{self, UP},
};
use crate::{arch::Arch, setup::Tool, sh};

/// Longer than anybody watches: what is on the screen may well stand still.
const PATIENT: Duration = Duration::from_hours(24);

/// What is shown.
pub struct Program<'a> {
    /// Command and arguments.
    pub words: &'a [&'a str],
    /// Its environment, beyond what each machine has.
    pub variables: &'a [(&'a str, String)],
    /// What it calls.
    pub tools: &'a [Tool],
    /// It is too much for a machine that is emulated.
    pub is_heavy: bool,
}

/// Runs a program on a kernel, and gives its exit code. The machine ends with it.
pub fn show(wanted: &Wanted, program: &Program) -> Result<u8> {
    let layers = Layers::ensure(Arch::HOST, program.tools)?;
    let kernel = Kernel::ensure(wanted, &layers)?;
    let terminal = Terminal::find()?;
    let mut variables = program.variables.to_vec();
    if terminal.is_some() {
        variables.push((
            "TERM",
            env::var("TERM").unwrap_or_else(|_| "vt100".to_owned()),
        ));
    }
    let size = terminal.as_ref().map(|terminal| terminal.size);
    let script = guest::of_program(Arch::HOST, program.words, &variables, size)?;
    let folder = sh::target()
        .join("vm")
        .join(format!("{}-shown", kernel.release));
    let plan = Plan::prepare(kernel, folder, &script, &layers)?;
    let accel = Accel::find(&plan.kernel, &plan.initrd(), &layers)?;
    ensure!(
        accel == Accel::Kvm || !program.is_heavy,
        "without hardware virtualisation this is too much for a virtual machine: play it without --vm"
    );
    sh::step(format!("booting {} ({accel:?})", plan.kernel));
    if accel == Accel::Tcg {
        sh::step("no hardware virtualisation: all of it takes some ten times as long,");
        sh::step("an agent's start half a minute, hundreds of pods two");
    }
    let mut qemu = plan.machine(accel, &layers)?;
    let (mut machine, said) = match up(&mut qemu) {
        // On a busy host an emulated machine may find its timers broken.
        Err(error) => {
            sh::step(format!("{error:#}; booting once more"));
            up(&mut qemu)?
        }
        booted => booted?,
    };
    // Until here Ctrl-C ends the machine; from here on it is the program's.
    let raw = terminal.map(Terminal::raw).transpose()?;
    if raw.is_some()
        && let Some(mut input) = machine.input()
    {
        // Ends with this process, or with the machine.
        thread::spawn(move || io::copy(&mut io::stdin(), &mut input));
    }
    let mut stdout = io::stdout();
    let mut said = Some(said);
    while let Some(bytes) = said {
        stdout.write_all(&bytes)?;
        stdout.flush()?;
        said = machine.bytes(PATIENT)?;
    }
    drop(raw);
    let console = machine::said(&plan.console())?;
    for complaint in results::complaints(&console) {
        sh::step(format!("the kernel said: {complaint}"));
    }
    results::status(&console).with_context(|| {
        format!(
            "the machine ended before its program; its console: {}",
            plan.console().display()
        )
    })
}

/// A machine in which the program begins now, and what it has said already.
fn up(qemu: &mut Command) -> Result<(Machine, Vec<u8>)> {
    let mut machine = machine::start(qemu)?;
    let mut said = Vec::new();
    loop {
        match machine.bytes(BOOT)? {
            Some(bytes) => said.extend(bytes),
            None => bail!(
                "the machine ended in its boot{}",
                machine
                    .failure()?
                    .map_or_else(String::new, |why| format!(": {why}"))
            ),
        }
        if let Some(rest) = after(&said, format!("{UP}\n").as_bytes()) {
            let rest = rest.to_vec();
            return Ok((machine, rest));
        }
    }
}

fn after<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<&'a [u8]> {
    let at = bytes
        .windows(mark.len())
        .position(|window| window == mark)?;
    Some(&bytes[at + mark.len()..])
}

/// The user's, by `stty`.
struct Terminal {
    /// As `stty -g` has them.
    settings: String,
    /// Lines and columns; a serial line's, where it does not say.
    size: (u16, u16),
}

impl Terminal {
    /// If there is one on both sides.
    fn find() -> Result<Option<Self>> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(None);
        }
        Ok(Some(Self {
            settings: stty(&["-g"])?,
            size: size(&stty(&["size"])?).unwrap_or((24, 80)),
        }))
    }

    /// From now on each key is a byte, and each byte is shown as it is.
    fn raw(self) -> Result<Raw> {
        stty(&["raw", "-echo"])?;
        Ok(Raw(self))
    }
}

/// A terminal whose settings come back on drop.
struct Raw(Terminal);

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = stty(&[&self.0.settings]) {
            sh::step(format!(
                "the terminal is not as it was: {error:#}; `reset` helps"
            ));
        }
    }
}

fn stty(arguments: &[&str]) -> Result<String> {
    let mut stty = Command::new("stty");
    // It is the terminal on its stdin that it is about.
    let output = stty
        .args(arguments)
        .stdin(Stdio::inherit())
        .output()
        .context("failed to start stty")?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        sh::shown(&stty),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Of `24 80`; nothing where the terminal does not know it.
fn size(text: &str) -> Option<(u16, u16)> {
    let (lines, columns) = text.split_once(' ')?;
    let (lines, columns) = (lines.parse().ok()?, columns.parse().ok()?);
    (lines > 0 && columns > 0).then_some((lines, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_says_begins_behind_the_mark() {
        assert_eq!(after(b"boot\nup\n\x1b[1m", b"up\n"), Some(&b"\x1b[1m"[..]));
        assert_eq!(after(b"boot\nup", b"up\n"), None);
    }

    #[test]
    fn a_size_is_lines_and_columns_and_known() {
        assert_eq!(size("24 80"), Some((24, 80)));
        assert_eq!(size("0 0"), None);
        assert_eq!(size(""), None);
    }
}
