//! Attaches programs, and takes them away again.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Program, ProgramError, RawTracePoint,
    links::FdLink,
};

use super::Loaded;

impl Loaded {
    pub(super) fn attach_tracepoint(&mut self, name: &str, tracepoint: &str) -> Result<()> {
        if self.adopt_link(name)? {
            return Ok(());
        }
        let program: &mut RawTracePoint = self.program(name)?;
        let id = program
            .attach(tracepoint)
            .with_context(|| format!("cannot attach to the raw tracepoint {tracepoint}"))?;
        if self.pins.is_some() {
            let program: &mut RawTracePoint = self.program(name)?;
            let link = program.take_link(id)?;
            self.pin_link(name, FdLink::from(link))?;
        }
        Ok(())
    }

    pub(super) fn attach_cgroup(
        &mut self,
        name: &str,
        path: &Path,
        at: CgroupSkbAttachType,
    ) -> Result<()> {
        if self.adopt_link(name)? {
            return Ok(());
        }
        let root = File::open(path)
            .with_context(|| format!("cannot open the root of cgroup2 {}", path.display()))?;
        let program: &mut CgroupSkb = self.program(name)?;
        // Single makes a link, which has the semantics of "multi": aya-rs/aya#1078.
        let id = program
            .attach(root, at, CgroupAttachMode::Single)
            .with_context(|| format!("cannot attach {name} to cgroup2 at {}", path.display()))?;
        if self.pins.is_some() {
            let program: &mut CgroupSkb = self.program(name)?;
            let link = program.take_link(id)?;
            self.pin_link(name, FdLink::try_from(link)?)?;
        }
        Ok(())
    }

    pub(in crate::kernel) fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
        Ok(program.try_into()?)
    }

    pub(in crate::kernel) fn unload(&mut self, name: &str) {
        self.unpin(name);
        self.links.remove(name);
        let result = match self.ebpf.program_mut(name) {
            Some(Program::RawTracePoint(program)) => program.unload(),
            Some(Program::CgroupSkb(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!("{name} was not loaded: {error}");
        }
    }
}
