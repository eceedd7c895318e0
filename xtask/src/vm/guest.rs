//! The script that runs in a guest as its first process.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{board::Board, results::MARK, suite::Binary};
use crate::{arch::Arch, build, sh};

/// Runs the picked tests one after the other, as `cargo test` would on the host.
pub fn script(arch: Arch, suite: &[Binary]) -> Result<String> {
    let own = env::current_exe()?;
    let line = Board::of(arch)?.tests;
    let tested =
        env::var_os("TRACER_BIN").map_or_else(|| build::tested_binary(arch), PathBuf::from);
    let home = env::var("HOME").context("HOME is not set")?;
    let variables = [
        ("HOME", home),
        ("PATH", path(arch)),
        ("LANG", "C.UTF-8".to_owned()),
        ("TERM", "dumb".to_owned()),
        ("TRACER_BIN", text(&tested)?),
        ("TRACER_XTASK", text(&own)?),
        ("TRACER_PATIENCE", super::patience()?.to_string()),
    ];
    let mut script = "#!/bin/bash\n# Made by `cargo xtask vm`.\n".to_owned();
    // The second serial line; the first is the kernel's.
    writeln!(
        script,
        "exec </dev/null >{line} 2>&1\nstty -F {line} raw -echo"
    )?;
    writeln!(script, "echo '{MARK}up'")?;
    for (name, value) in variables {
        writeln!(script, "export {name}={}", quoted(&value))?;
    }
    writeln!(script, "cd {}", quoted(&text(&sh::root().join("tests"))?))?;
    // The host's, seen through the shared files.
    script += "rm -f /tmp/tracer-verifier-*.log\n";
    for binary in suite {
        writeln!(script, "echo '{MARK}file {}'", binary.file)?;
        write!(
            script,
            "{} --test-threads=1 --color=never --exact",
            quoted(&text(&binary.path)?)
        )?;
        for test in &binary.tests {
            write!(script, " {}", quoted(test))?;
        }
        script += "\n";
        script += REFUSALS;
    }
    // What the serial line still holds is sent before the machine is gone.
    writeln!(
        script,
        "echo \"{MARK}ends after $(cut -d' ' -f1 /proc/uptime) s\"\necho '{MARK}end'\nstty -F {line} -raw\nsync"
    )?;
    script += "echo o >/proc/sysrq-trigger\nsleep 60\n";
    Ok(script)
}

/// Where the guest's programs are.
fn path(arch: Arch) -> String {
    const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
    if arch == Arch::HOST {
        // A user's PATH may lack the administrator's folders.
        let own = env::var("PATH").unwrap_or_default();
        format!("{own}:/usr/local/sbin:/usr/local/bin:{SYSTEM}")
    } else {
        // The other folders are the host's alone.
        SYSTEM.to_owned()
    }
}

/// What the verifier said of a program that it refused ends with the reason.
const REFUSALS: &str = r#"for log in /tmp/tracer-verifier-*.log; do
    [ -e "$log" ] || continue
    echo "tracer-vm: the verifier's last words on $log"
    tail -n 40 "$log"
    rm "$log"
done
"#;

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not text", path.display()))
}

/// For the shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_script_is_one_that_the_shell_reads() {
        let suite = [Binary {
            file: "neigh".to_owned(),
            path: PathBuf::from("/it's here/neigh-1"),
            tests: vec!["a".to_owned(), "b::c".to_owned()],
        }];
        let script = script(Arch::HOST, &suite).unwrap();
        assert!(
            script.contains(
                r"'/it'\''s here/neigh-1' --test-threads=1 --color=never --exact 'a' 'b::c'"
            ),
            "{script}"
        );
        let read = Command::new("bash").args(["-n", "-c", &script]).output();
        assert!(read.unwrap().status.success());
    }
}
