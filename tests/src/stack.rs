//! How much stack the programs take, read off their instructions: what the verifier finds, but does
//! not tell of a program that it accepts.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context as _, Result, ensure};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SectionKind, SymbolKind,
    elf::EM_BPF,
    read::elf::{ElfFile64, FileHeader as _},
};

type Elf<'data> = ElfFile64<'data, object::Endianness>;

/// What the kernel gives a program and all that it calls (`MAX_BPF_STACK`).
pub const LIMIT: u32 = 512;

/// Stack on the deepest chain of calls, bytes: as kernels from 6.9 on with a JIT add frames up, and as
/// those before do (`round_up_stack_depth`, kernel/bpf/verifier.c). Some programs of 6.13 and later
/// have a stack for each frame: then it is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Frames rounded up to 16 bytes.
    pub bytes: u32,
    /// Frames rounded up to 32 bytes, and none without.
    pub before_6_9: u32,
}

impl Stack {
    const NONE: Self = Self {
        bytes: 0,
        before_6_9: 0,
    };

    fn deeper(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            before_6_9: self.before_6_9.max(other.before_6_9),
        }
    }

    fn below(self, frame: u32) -> Self {
        Self {
            bytes: self.bytes + frame.next_multiple_of(16),
            before_6_9: self.before_6_9 + frame.max(1).next_multiple_of(32),
        }
    }
}

/// Where a function begins.
type Place = (SectionIndex, u64);

#[derive(Debug, Default)]
struct Function {
    name: String,
    size: u64,
    frame: u32,
    calls: HashSet<Place>,
}

/// The stack of each program, by name. `binary` is an
/// eBPF object, or a program that holds one.
pub fn of_programs(binary: &[u8]) -> Result<BTreeMap<String, Stack>> {
    let elf = find(binary).context("there is no eBPF object in it")?;
    let mut functions = functions(&elf)?;
    for (place, function) in &mut functions {
        read(&elf, *place, function).with_context(|| format!("function {}", function.name))?;
    }
    let mut stacks = BTreeMap::new();
    for ((section, at), function) in &functions {
        // Programs have sections of their own, which name the hook.
        if elf.section_by_index(*section)?.name()? != ".text" {
            let depth = depth(&functions, (*section, *at), &mut Vec::new())?;
            stacks.insert(function.name.clone(), depth);
        }
    }
    Ok(stacks)
}

/// The first ELF file for BPF in the bytes.
fn find(bytes: &[u8]) -> Option<Elf<'_>> {
    let starts = bytes.windows(4).enumerate();
    starts
        .filter(|(_, window)| window == b"\x7fELF")
        .filter_map(|(start, _)| Elf::parse(&bytes[start..]).ok())
        .find(|elf| elf.elf_header().e_machine(elf.endian()) == EM_BPF)
}

fn functions(elf: &Elf<'_>) -> Result<HashMap<Place, Function>> {
    let mut functions = HashMap::new();
    for symbol in elf.symbols() {
        if symbol.kind() == SymbolKind::Text
            && symbol.size() > 0
            && let Some(section) = symbol.section_index()
        {
            let function = Function {
                name: symbol.name()?.to_owned(),
                size: symbol.size(),
                ..Function::default()
            };
            functions.insert((section, symbol.address()), function);
        }
    }
    Ok(functions)
}

/// Finds a function's frame and what it calls.
fn read(elf: &Elf<'_>, (section, start): Place, function: &mut Function) -> Result<()> {
    let section = elf.section_by_index(section)?;
    let mut targets = HashMap::new();
    for (offset, relocation) in section.relocations() {
        if let RelocationTarget::Symbol(index) = relocation.target() {
            let symbol = elf.symbol_by_index(index)?;
            // Maps and globals are in sections without code.
            if let Some(index) = symbol.section_index()
                && elf.section_by_index(index)?.kind() == SectionKind::Text
            {
                targets.insert(offset, (index, symbol.address()));
            }
        }
    }
    let data = section.data()?;
    let end = start + function.size;
    // Registers that hold the frame pointer itself.
    let mut pointers = [false; 16];
    let mut at = start;
    while at < end {
        let bytes = data.get(at as usize..at as usize + 8);
        let instruction = Instruction::parse(bytes.context("it is cut off")?);
        if let Some(depth) = instruction.depth(&mut pointers) {
            function.frame = function.frame.max(depth);
        }
        let call = instruction.call((section.index(), at), targets.get(&at).copied());
        function.calls.extend(call);
        at += instruction.length();
    }
    Ok(())
}

fn depth(functions: &HashMap<Place, Function>, at: Place, above: &mut Vec<Place>) -> Result<Stack> {
    ensure!(!above.contains(&at), "a function calls itself");
    let function = functions.get(&at).context("a call leads to no function")?;
    above.push(at);
    let mut deepest = Stack::NONE;
    for call in &function.calls {
        deepest = deepest.deeper(depth(functions, *call, above)?);
    }
    above.pop();
    Ok(deepest.below(function.frame))
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
struct Instruction {
    code: u8,
    destination: usize,
    source: usize,
    offset: i16,
    immediate: i32,
}

/// The frame pointer.
const R10: usize = 10;
const LOAD_64: u8 = 0x18; // the only instruction of two slots
const ADD: u8 = 0x07;
const MOVE: u8 = 0xbf;
const CALL: u8 = 0x85;
const PSEUDO_CALL: usize = 1;

impl Instruction {
    fn parse(bytes: &[u8]) -> Self {
        let (low, high) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
        let little = cfg!(target_endian = "little");
        let (destination, source) = if little { (low, high) } else { (high, low) };
        Self {
            code: bytes[0],
            destination,
            source,
            offset: i16::from_ne_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    const fn length(&self) -> u64 {
        if self.code == LOAD_64 { 16 } else { 8 }
    }

    /// How far below the frame pointer it reaches, if it does.
    fn depth(&self, pointers: &mut [bool; 16]) -> Option<u32> {
        let below = |distance: i32| u32::try_from(-distance).ok();
        let is_pointer = |register: usize| register == R10 || pointers[register];
        match self.code & 7 {
            1 => {
                let reaches = is_pointer(self.source);
                pointers[self.destination] = false;
                reaches.then(|| below(self.offset.into()))?
            }
            2 | 3 => is_pointer(self.destination).then(|| below(self.offset.into()))?,
            _ if self.code == MOVE => {
                pointers[self.destination] = self.offset == 0 && is_pointer(self.source);
                None
            }
            _ if self.code == ADD => {
                let reaches = std::mem::take(&mut pointers[self.destination]);
                reaches.then(|| below(self.immediate))?
            }
            4 | 7 | 0 => {
                pointers[self.destination] = false;
                None
            }
            _ => None, // jumps and calls
        }
    }

    /// The function that it calls or, as a callback, hands to a helper. `target` is what the linker
    /// has put down for it: a function, or a section with the place in it as the immediate.
    fn call(&self, (section, at): Place, target: Option<Place>) -> Option<Place> {
        let immediate = i64::from(self.immediate);
        let (section, base, distance) = match (self.code, target) {
            (LOAD_64, Some((section, base))) => (section, base, immediate),
            (CALL, Some((section, base))) => (section, base, (immediate + 1) * 8),
            (CALL, None) if self.source == PSEUDO_CALL => (section, at, (immediate + 1) * 8),
            _ => return None,
        };
        Some((section, base.checked_add_signed(distance)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depths(code: &[[u8; 8]]) -> Vec<Option<u32>> {
        let mut pointers = [false; 16];
        code.iter()
            .map(|bytes| Instruction::parse(bytes).depth(&mut pointers))
            .collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn frames_are_what_the_code_reaches() {
        // *(u64 *)(r10 - 8) = r1; r2 = r10; r2 += -24; r2 += -8; r3 = *(u32 *)(r10 - 40)
        let code = [
            [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xe8, 0xff, 0xff, 0xff],
            [0x07, 0x02, 0, 0, 0xf8, 0xff, 0xff, 0xff],
            [0x61, 0xa3, 0xd8, 0xff, 0, 0, 0, 0],
        ];
        assert_eq!(depths(&code), [Some(8), None, Some(24), None, Some(40)]);
        // r1 = r10; r1 = 0; r1 += -8; *(u64 *)(r2 - 8) = r1
        let code = [
            [0xbf, 0xa1, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x01, 0, 0, 0, 0, 0, 0],
            [0x07, 0x01, 0, 0, 0xf8, 0xff, 0xff, 0xff],
            [0x7b, 0x12, 0xf8, 0xff, 0, 0, 0, 0],
        ];
        assert_eq!(depths(&code), [None; 4]);
    }

    #[test]
    fn chains_add_up_and_the_deepest_counts() {
        let place = |at| (SectionIndex(1), at);
        let function = |frame, calls: &[u64]| Function {
            frame,
            calls: calls.iter().map(|at| place(*at)).collect(),
            ..Function::default()
        };
        let mut functions = HashMap::from([
            (place(0), function(100, &[8, 16])),
            (place(8), function(33, &[])),
            (place(16), function(0, &[24])),
            (place(24), function(8, &[])),
        ]);
        let of = |functions: &_, at| depth(functions, place(at), &mut Vec::new());
        let stack = of(&functions, 0).unwrap();
        assert_eq!((stack.bytes, stack.before_6_9), (112 + 48, 128 + 64));
        functions.insert(place(24), function(8, &[0]));
        assert!(of(&functions, 0).is_err());
    }
}
