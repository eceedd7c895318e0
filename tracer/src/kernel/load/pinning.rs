//! Programs and attachments that outlive the agent. Where the same build was at work with the same
//! parameters, its programs are taken over as they run, and nothing goes uncounted. Where another was, the
//! new programs are attached beside its own, and count nothing until one word in a map ([`Loaded::activate`]) says that
//! it is their turn, and no more the others'. What a processor is about to count in that very moment, one thing at
//! most, may be counted by both or by neither. Only then the other build's attachments are let go: the kernel ends
//! them after a grace period of RCU, on a busy machine tens of milliseconds later.
//!
//! An agent that ends leaves them too. Lookups and attempts are under way at any moment: had nobody seen
//! their end, the next agent would count them as failed.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    maps::{Array, Map},
    programs::{
        CgroupSkb, CgroupSkbAttachType, FExit, Program, RawTracePoint,
        links::{FdLink, PinnedLink},
    },
};
use tracer_common::Hook;

use super::{Loaded, OBJECT};
use crate::kernel::sends;

/// Stands for the object and what it was told.
pub(super) fn fingerprint(told: impl Hash) -> u64 {
    // Two builds with different hash functions have different objects or compilers: a mere exchange.
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    told.hash(&mut hasher);
    hasher.finish().max(1) // 0: nobody counts
}

impl Loaded {
    /// Takes a program over that is pinned. `false`: there is none.
    pub(in crate::kernel) fn adopt(&mut self, name: &str) -> Result<bool> {
        let Some(path) = self.pins.as_ref().map(|pins| pins.program(name)) else {
            return Ok(false);
        };
        if !path.exists() {
            return Ok(false);
        }
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
        let at = match name {
            "dns_ingress" => CgroupSkbAttachType::Ingress,
            _ => CgroupSkbAttachType::Egress,
        };
        let context = || format!("cannot take over the program {}", path.display());
        *program = match program {
            Program::CgroupSkb(_) => {
                Program::CgroupSkb(CgroupSkb::from_pin(&path, at).with_context(context)?)
            }
            Program::RawTracePoint(_) => {
                Program::RawTracePoint(RawTracePoint::from_pin(&path).with_context(context)?)
            }
            Program::FExit(_) => Program::FExit(FExit::from_pin(&path).with_context(context)?),
            _ => return Ok(false),
        };
        Ok(true)
    }

    /// Lets a program outlive the agent.
    pub(in crate::kernel) fn pin(&mut self, name: &str) -> Result<()> {
        let Some(pins) = &self.pins else {
            return Ok(());
        };
        let path = pins.program(name);
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
        program
            .pin(&path)
            .with_context(|| format!("cannot pin a program at {}", path.display()))
    }

    /// Is the program attached already, by an agent that was killed?
    pub(in crate::kernel) fn is_pinned(&self, name: &str) -> bool {
        let pins = self.pins.as_ref();
        pins.is_some_and(|pins| pins.link(name).exists())
    }

    /// Before a program is attached. `true`: its attachment is there, and taken over.
    pub(super) fn adopt_link(&mut self, name: &str) -> Result<bool> {
        let Some(pins) = &self.pins else {
            return Ok(false);
        };
        if !self.is_pinned(name) {
            return Ok(false);
        }
        let path = pins.link(name);
        let link = PinnedLink::from_pin(&path)
            .with_context(|| format!("cannot take over the attachment {}", path.display()))?;
        self.links.insert(name.to_owned(), link);
        Ok(true)
    }

    /// From now on this build counts, all of its programs at once, and no other does; what others have left goes.
    pub(super) fn activate(&mut self, build: u64) -> Result<()> {
        if self.sees_sends {
            sends::note_from_now_on(&mut self.ebpf)?;
        }
        // A refusal waits for the packet that dies of it only where somebody sees that.
        let sees_drops = u32::from(self.is_attached(Hook::Drops));
        Array::try_from(self.map("DROPS_WATCHED")?)?
            .set(0, sees_drops, 0)
            .context("cannot write the map DROPS_WATCHED")?;
        Array::try_from(self.map("ACTIVE")?)?
            .set(0, build, 0)
            .context("cannot set the map ACTIVE, so that no program counts")?;
        if !self.sees_sends {
            sends::note_no_more(&mut self.ebpf)?;
        }
        match &self.pins {
            Some(pins) => pins.relieve_all(),
            None => Ok(()),
        }
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        let map = self.ebpf.map_mut(name);
        map.ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
    }

    /// Lets an attachment outlive the agent.
    pub(super) fn pin_link(&mut self, name: &str, link: FdLink) -> Result<()> {
        let pins = self.pins.as_ref();
        let path = pins.map(|pins| pins.link(name)).unwrap_or_default();
        let link = link
            .pin(&path)
            .with_context(|| format!("cannot pin an attachment at {}", path.display()))?;
        self.links.insert(name.to_owned(), link);
        Ok(())
    }

    /// Attaches a program to the end of the function that it was loaded for.
    pub(in crate::kernel) fn attach_fexit(&mut self, name: &str) -> Result<()> {
        if self.adopt_link(name)? {
            return Ok(());
        }
        let program: &mut FExit = self.program(name)?;
        let id = program.attach()?;
        if self.pins.is_some() {
            let program: &mut FExit = self.program(name)?;
            let link = program.take_link(id)?;
            self.pin_link(name, FdLink::from(link))?;
        }
        Ok(())
    }

    /// Takes a program and its attachment out of the state folder.
    pub(super) fn unpin(&self, name: &str) {
        if let Some(pins) = &self.pins
            && let Err(error) = pins.unpin(name)
        {
            tracing::error!("cannot take {name} out of the state folder: {error}");
        }
    }
}
