//! Starts a hook: its programs are loaded, then attached. What the kernel refuses of it is done without, where that is
//! possible, and told.

use anyhow::{Result, anyhow};
use aya::{programs::CgroupSkbAttachType, util::online_cpus};
use tracer_common::Hook;

use super::{HookStatus, Loaded, State, expected};
use crate::kernel::{
    cgroup,
    mechanisms::{Plan, TRACEPOINTS, dispensable, mechanism, programs, stand_in},
    offsets::Offsets,
};

impl Loaded {
    pub(super) fn start(
        &mut self,
        hook: Hook,
        plan: Result<Plan>,
        offsets: &Offsets,
        attach: bool,
    ) -> HookStatus {
        let mut status = HookStatus {
            hook,
            state: State::Attached,
            mechanism: expected(hook, offsets).mechanism,
            reason: String::new(),
            not_seen: String::new(),
            verified: Vec::new(),
        };
        let result = plan.and_then(|mut plan| {
            self.try_start(hook, &mut plan, attach, &mut status.verified)?;
            Ok(plan)
        });
        match result {
            Ok(plan) => {
                if hook != Hook::Dns {
                    status.mechanism = mechanism(hook, |program| plan.has(program));
                }
                if !plan.lost.is_empty() {
                    status.state = State::Degraded;
                    status.reason = plan.lost.join("; ");
                }
            }
            Err(why) => {
                for name in programs(hook) {
                    self.unload(name);
                }
                status.state = State::Unavailable;
                status.reason = format!("{why:#}").replace('\n', " ");
            }
        }
        status
    }

    /// What the kernel refuses leaves the plan, where the hook can do without.
    fn try_start(
        &mut self,
        hook: Hook,
        plan: &mut Plan,
        attach: bool,
        verified: &mut Vec<(String, u32)>,
    ) -> Result<()> {
        let cgroup = match hook {
            Hook::Dns => Some(cgroup::mount_point()?),
            _ => None,
        };
        for name in plan.load.clone() {
            let (loaded, name) = match (self.load_program(name), stand_in(name)) {
                (Err(why), Some(other)) => {
                    tracing::debug!("{other} takes the place of {name}: {why:#}");
                    self.unload(name);
                    (self.load_program(other), other)
                }
                (loaded, _) => (loaded, name),
            };
            match loaded {
                // The kernel tells since 5.16.
                Ok(Some(instructions)) => verified.push((name.to_owned(), instructions)),
                Ok(None) => {}
                Err(why) => self.do_without(name, plan, why)?,
            }
        }
        if !attach {
            return Ok(());
        }
        if plan.has("conntrack_begin")
            && !self.is_pinned("kfree_skb")
            && let Err(why) = self.begin_conntrack()
        {
            self.do_without("conntrack_begin", plan, why)?;
        }
        for (name, tracepoint) in TRACEPOINTS {
            if plan.has(name)
                && let Err(why) = self.attach_tracepoint(name, tracepoint)
            {
                self.do_without(name, plan, why)?;
            }
        }
        if let Some(path) = cgroup {
            self.attach_cgroup("dns_ingress", &path, CgroupSkbAttachType::Ingress)?;
            self.attach_cgroup("dns_egress", &path, CgroupSkbAttachType::Egress)?;
        }
        Ok(())
    }

    /// Notes what conntrack has refused until now, on each CPU.
    fn begin_conntrack(&mut self) -> Result<()> {
        let online = || online_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"));
        for cpu in online()? {
            let run = self.run_on("conntrack_begin", Some(cpu));
            // It may have gone offline meanwhile.
            if run.is_err() && online()?.contains(&cpu) {
                run?;
            }
        }
        Ok(())
    }

    /// Goes on without a program that failed so, or fails where the hook cannot.
    fn do_without(&mut self, name: &str, plan: &mut Plan, why: anyhow::Error) -> Result<()> {
        let Some(lost) = dispensable(name) else {
            return Err(why);
        };
        self.unload(name);
        plan.load.retain(|program| *program != name);
        if !lost.is_empty() {
            plan.lost
                .push(format!("{lost}: {why:#}").replace('\n', " "));
        }
        Ok(())
    }
}
