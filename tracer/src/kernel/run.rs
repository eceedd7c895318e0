//! Runs the programs that are attached to nothing (BPF_PROG_TEST_RUN of raw tracepoints, 5.10): those
//! that walk the kernel's tables and tracer's maps.

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapError},
    programs::{Program, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use tracer_common::{
    FAMILIES,
    dns::{Lookup, Served},
    neigh::Walk,
    tcp::Talking,
};

use super::load::Loaded;

/// Rounds that one walk may take: a table of a million entries.
const MAX_ROUNDS: u32 = 1 << 16;

/// Arguments of a program.
type Arguments = [u64; 12];

impl Loaded {
    /// Runs a program.
    pub fn run(&self, name: &str) -> Result<()> {
        self.run_on(name, None)
    }

    /// Runs it on a certain CPU.
    pub fn run_on(&self, name: &str, cpu: Option<u32>) -> Result<()> {
        self.run_with(name, cpu, Arguments::default())
    }

    /// Walks the neighbour tables: in one go, or in rounds where the kernel has no `bpf_loop`.
    pub fn walk(&self) -> Result<()> {
        if self.has("walk") {
            return self.run("walk");
        }
        let walks: Array<_, Walk> = Array::try_from(self.read_map("WALK")?)?;
        for round in 0..MAX_ROUNDS {
            let mut arguments = Arguments::default();
            arguments[0] = u64::from(round == 0);
            self.run_with("walk_round", None, arguments)?;
            // A table that cannot be reached is not walked, and has no buckets.
            let is_over = |walk: Walk| walk.complete != 0 || walk.len == 0;
            let over = (0..FAMILIES).map(|family| Ok(is_over(walks.get(&family, 0)?)));
            if over.collect::<Result<Vec<bool>, MapError>>()? == [true; FAMILIES as usize] {
                return Ok(());
            }
        }
        bail!("the neighbour tables have no end")
    }

    /// Ends the lookups that are over, and the queries that a server has let lie. Without
    /// `bpf_for_each_map_elem` the program looks at one at a time: whoever removes a lookup counts it,
    /// so that one which ends meanwhile is counted once all the same.
    pub fn age_lookups(&self) -> Result<()> {
        if self.has("dns_age") {
            return self.run("dns_age");
        }
        self.age_each::<[u64; 2], Lookup>("PENDING", "dns_age_one", &[0])?;
        self.age_each::<[u64; 6], Served>("SERVED", "dns_age_one", &[1])
    }

    /// Looks for requests that nobody answers.
    pub fn age_connections(&self) -> Result<()> {
        if self.has("tcp_age") {
            return self.run("tcp_age");
        }
        self.age_each::<[u64; 1], Talking>("TALKING", "tcp_age_one", &[])
    }

    /// Runs a program for every key of a map; its words come behind the first arguments.
    fn age_each<K: Pod + AsRef<[u64]>, V: Pod>(
        &self,
        map: &str,
        program: &str,
        first: &[u64],
    ) -> Result<()> {
        let map: HashMap<_, K, V> = HashMap::try_from(self.read_map(map)?)?;
        // All keys first: the program removes some.
        let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
        for key in keys {
            let mut arguments = Arguments::default();
            let words = first.iter().chain(key.as_ref());
            for (argument, word) in arguments.iter_mut().zip(words) {
                *argument = *word;
            }
            self.run_with(program, None, arguments)?;
        }
        Ok(())
    }

    /// Is the program in the kernel?
    fn has(&self, name: &str) -> bool {
        matches!(self.ebpf.program(name), Some(Program::RawTracePoint(p)) if p.fd().is_ok())
    }

    fn read_map(&self, name: &str) -> Result<&Map> {
        let map = self.ebpf.map(name);
        map.ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
    }

    /// What the program returns does not come back: aya's programs at raw tracepoints end with 0.
    fn run_with(&self, name: &str, cpu: Option<u32>, args: Arguments) -> Result<()> {
        let program: &RawTracePoint = self
            .ebpf
            .program(name)
            .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?
            .try_into()?;
        program
            .test_run(RawTracePointRunOptions { args, cpu })
            .with_context(|| format!("cannot run the eBPF program {name}"))?;
        Ok(())
    }
}
