//! The programs go to the verifier side by side: it takes most of an agent's start, on one processor for
//! each program.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write as _},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramError},
};

use crate::kernel::{refusal, sends};

/// No more of a node's processors are taken.
const THREADS: usize = 4;

/// What the verifier said, by program.
pub(super) type Verdicts = HashMap<String, Result<()>>;

/// Loads the programs of those names.
pub(super) fn all(ebpf: &mut Ebpf, names: &[&str]) -> Verdicts {
    let of_name = |(name, _): &(&str, &mut Program)| names.contains(name);
    let programs = ebpf.programs_mut().filter(of_name);
    let (sends, mut others): (Vec<_>, Vec<_>) =
        programs.partition(|(_, program)| matches!(program, Program::FExit(_)));
    // Taken from the end: the largest, those of the hook `dns`, first.
    others.sort_by_key(|(name, _)| names.iter().position(|n| n == name));
    let others = Mutex::new(others);
    let next = || others.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let rest = || {
        std::iter::from_fn(next)
            .map(|(name, program)| (name.to_owned(), load(name, program)))
            .collect::<Verdicts>()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let beside: Vec<_> = (1..threads.min(THREADS))
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, rest).ok())
            .collect();
        let mut verdicts = of_sends(sends);
        verdicts.extend(rest());
        for thread in beside {
            // What is missing then is loaded again, by itself.
            verdicts.extend(thread.join().unwrap_or_default());
        }
        verdicts
    })
}

/// Those that are bound to functions of the kernel take the ids that its types have.
fn of_sends(programs: Vec<(&str, &mut Program)>) -> Verdicts {
    if programs.is_empty() {
        return Verdicts::new();
    }
    // The library's own form, read for this and dropped at once.
    let btf = Btf::from_sys_fs();
    let load = |name: &str, program: &mut Program| {
        let btf = btf.as_ref().map_err(|error| anyhow!("{error}"));
        let btf = btf.context("cannot read the kernel's BTF")?;
        let Program::FExit(program) = program else {
            return Err(anyhow!("{name} is no fexit program"));
        };
        let result = program.load(sends::function(name), btf);
        result.map_err(|error| explain(name, error))
    };
    programs
        .into_iter()
        .map(|(name, program)| (name.to_owned(), load(name, program)))
        .collect()
}

/// Loads one.
pub(super) fn load(name: &str, program: &mut Program) -> Result<()> {
    let result = match program {
        Program::RawTracePoint(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    result.map_err(|error| explain(name, error))
}

/// The last words of the verifier, and the rest of them into a file.
fn explain(name: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return anyhow!(error).context(format!("cannot load the eBPF program {name}"));
    };
    let log = verifier_log.to_string();
    if log.trim().is_empty() {
        let error = anyhow!(io_error).context(format!("cannot load the eBPF program {name}"));
        return refusal::explain(error, refusal::LOADING);
    }
    let path = std::env::temp_dir().join(format!("tracer-verifier-{name}.log"));
    let said = log
        .lines()
        .rev()
        .find(|l| {
            !l.starts_with("processed")
                && !l.starts_with("verification time")
                && !l.starts_with("stack depth")
                && !l.trim().is_empty()
        })
        .unwrap_or_default()
        .to_owned();
    let kept = match write_private(&path, &log) {
        Ok(()) => format!(" (its log: {})", path.display()),
        Err(_) => String::new(), // the last words must do
    };
    let meaning = refusal::of_verifier(&said);
    let meaning = meaning.map_or(String::new(), |meaning| format!(": {meaning}"));
    anyhow!("the verifier refuses the eBPF program {name}: {said}{meaning}{kept}")
}

/// A new file, never one that somebody else put there.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?
        .write_all(text.as_bytes())
}
