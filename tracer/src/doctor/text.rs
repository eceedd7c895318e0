//! The report for people.

use std::fmt::{Display, Formatter, Result};

use super::{Capability, Report, hooks::HookReport};
use crate::output::printable;

/// Is there, is there in part, is not, cannot be said.
const OK: &str = "ok";
const PART: &str = "part";
const NO: &str = "NO";
const NONE: &str = "-";

fn row(f: &mut Formatter<'_>, mark: &str, name: &str, detail: &str) -> Result {
    writeln!(
        f,
        "  {mark:<4} {:<15} {}",
        printable(name),
        printable(detail)
    )
}

/// A line more for the row above.
fn more(f: &mut Formatter<'_>, detail: &str) -> Result {
    writeln!(f, "  {:<4} {:<15} {}", "", "", printable(detail))
}

const fn mark(ok: Option<bool>, otherwise: &'static str) -> &'static str {
    match ok {
        Some(true) => OK,
        Some(false) => otherwise,
        None => NONE,
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(
            f,
            "tracer {} on Linux {} ({})",
            self.version,
            printable(&self.kernel),
            printable(&self.architecture)
        )?;
        row(f, mark(Some(self.btf.ok), NO), "BTF", &self.btf.detail)?;
        let lockdown = format!("{}: {}", self.lockdown.mode, self.lockdown.detail);
        row(f, mark(self.lockdown.ok, NO), "lockdown", &lockdown)?;
        row(
            f,
            mark(Some(self.cgroup2.ok), NO),
            "cgroup2",
            &self.cgroup2.detail,
        )?;
        let layout = mark(Some(self.cgroups.ok), PART);
        row(f, layout, "cgroup layout", self.cgroups.layout)?;
        for cost in &self.cgroups.costs {
            more(f, cost)?;
        }
        self.settings(f)?;
        self.rights(f)?;
        writeln!(f, "hooks")?;
        self.hooks.iter().try_for_each(|hook| hook.write(f))?;
        self.state_folder(f)?;
        writeln!(
            f,
            "neighbour tables (one for the whole kernel, shared by all pods)"
        )?;
        self.tables.iter().try_for_each(|table| table.fmt(f))?;
        writeln!(f, "pod sources")?;
        for source in &self.sources {
            row(f, mark(source.ok, NO), &source.name, &source.detail)?;
        }
        if let Some(conntrack) = &self.conntrack {
            write!(
                f,
                "connection tracking (of this network namespace)\n{conntrack}"
            )?;
        }
        writeln!(f, "not seen")?;
        for thing in &self.not_seen {
            writeln!(f, "      {}", printable(thing))?;
        }
        self.verdict(f)
    }
}

impl Report {
    fn settings(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "settings")?;
        for setting in &self.settings {
            let value = setting
                .value
                .map_or(NONE.to_owned(), |value| value.to_string());
            let mark = mark(setting.value.map(|_| setting.ok), PART);
            writeln!(f, "  {mark:<4} {} = {value}", setting.name)?;
            if !setting.detail.is_empty() {
                more(f, &setting.detail)?;
            }
        }
        Ok(())
    }

    fn rights(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "capabilities")?;
        for capability in &self.capabilities {
            capability.write(f)?;
        }
        Ok(())
    }

    fn state_folder(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "state folder")?;
        let path = self.state.path.as_ref();
        let name = path.map_or("none".into(), |path| path.display().to_string());
        row(f, mark(self.state.ok, PART), &name, &self.state.detail)
    }

    fn verdict(&self, f: &mut Formatter<'_>) -> Result {
        if self.main_job_can_run {
            writeln!(f, "the agent can do its main job on this node")?;
        } else {
            writeln!(
                f,
                "the agent cannot do its main job on this node: see NO above"
            )?;
        }
        writeln!(f, "next")?;
        for step in &self.next {
            writeln!(f, "      {}", printable(&step.why))?;
            if let Some(command) = &step.command {
                writeln!(f, "        {command}")?;
            }
        }
        Ok(())
    }
}

impl Capability {
    fn write(&self, f: &mut Formatter<'_>) -> Result {
        let otherwise = if self.required { NO } else { NONE };
        row(f, mark(Some(self.held), otherwise), self.name, self.purpose)?;
        if self.held {
            Ok(())
        } else {
            more(f, &format!("without: {}", self.without))
        }
    }
}

impl HookReport {
    fn write(&self, f: &mut Formatter<'_>) -> Result {
        let mark = match self.state {
            "attached" => OK,
            _ if self.ok => PART,
            _ => NO,
        };
        row(f, mark, self.name, &self.mechanism)?;
        match self.reason.as_str() {
            "" => Ok(()),
            reason => more(f, reason),
        }
    }
}
