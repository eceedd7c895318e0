//! Cuts BTF down to the types that tracer asks for. What remains is BTF: the same names, offsets,
//! sizes and values; members that nobody asks for are left out, and pointers lead to void.
//!
//! The format is include/uapi/linux/btf.h. Read and written as bytes: what the crates for BTF can
//! write is what a compiler of BPF needs, which is no structures.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail, ensure};

use super::wanted;

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;

// enum of BTF_KIND_*.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// The BTF in a kernel's image, without what is around it.
pub fn find(image: &[u8]) -> Option<&[u8]> {
    (0..image.len().saturating_sub(HEADER_LEN))
        .filter(|at| image[*at..].starts_with(&MAGIC.to_le_bytes()) && image[at + 2] == 1)
        // The magic number is short; a kernel's BTF is not.
        .find_map(|at| {
            let rest = &image[at..];
            let types = section(rest, 8).filter(|types| types.len() > 100_000)?;
            let strings = section(rest, 16).filter(|strings| strings.starts_with(b"\0"))?;
            let end = |part: &[u8]| part.as_ptr() as usize + part.len() - rest.as_ptr() as usize;
            rest.get(..end(types).max(end(strings)))
        })
}

/// The part of which the header says offset and length at `at`.
fn section(btf: &[u8], at: usize) -> Option<&[u8]> {
    let header = word(btf, 4)? as usize;
    let from = header.checked_add(word(btf, at)? as usize)?;
    btf.get(from..from.checked_add(word(btf, at + 4)? as usize)?)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

/// One type: `struct btf_type` and what follows it.
#[derive(Clone, Copy)]
struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    fn word(self, index: usize) -> u32 {
        word(self.0, index * 4).unwrap_or_default() // as long as its kind says
    }

    fn kind(self) -> u32 {
        (self.word(1) >> 24) & 0x1f
    }

    /// Size, or the type that it leads to.
    fn size_or_type(self) -> u32 {
        self.word(2)
    }

    /// What follows, in groups of `words`.
    fn parts(self, words: usize) -> impl Iterator<Item = Vec<u32>> + 'a {
        self.0[12..].chunks_exact(words * 4).map(|part| {
            part.chunks_exact(4)
                .map(|w| u32::from_le_bytes(w.try_into().expect("four bytes")))
                .collect()
        })
    }

    fn is_aggregate(self) -> bool {
        matches!(self.kind(), STRUCT | UNION)
    }
}

/// What the kernel has.
struct Source<'a> {
    /// By id; the first, void, is empty.
    types: Vec<Record<'a>>,
    strings: &'a [u8],
    by_name: HashMap<(u32, &'a str), u32>,
}

impl<'a> Source<'a> {
    fn parse(btf: &'a [u8]) -> Result<Self> {
        ensure!(
            word(btf, 0).is_some_and(|w| w as u16 == MAGIC),
            "this is no BTF of a little-endian machine"
        );
        let mut rest = section(btf, 8).context("the types are cut off")?;
        let strings = section(btf, 16).context("the strings are cut off")?;
        let mut source = Self {
            types: vec![Record(&[0; 12])],
            strings,
            by_name: HashMap::new(),
        };
        while !rest.is_empty() {
            let info = word(rest, 4).context("a type is cut off")?;
            let count = (info & 0xffff) as usize;
            let kind = (info >> 24) & 0x1f;
            let more = match kind {
                PTR | TYPEDEF..=FUNC | 7 | 16 | TYPE_TAG => 0,
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                STRUCT | UNION | DATASEC | ENUM64 => count * 12,
                ENUM | FUNC_PROTO => count * 8,
                other => bail!("BTF of a kind that is not known: {other}"),
            };
            let (record, behind) = rest
                .split_at_checked(12 + more)
                .context("a type is cut off")?;
            let id = source.types.len() as u32;
            source.types.push(Record(record));
            let name = source.name(word(record, 0).unwrap_or_default());
            source.by_name.entry((kind, name)).or_insert(id);
            rest = behind;
        }
        Ok(source)
    }

    fn get(&self, id: u32) -> Record<'a> {
        self.types
            .get(id as usize)
            .copied()
            .unwrap_or(Record(&[0; 12]))
    }

    fn name(&self, offset: u32) -> &'a str {
        let from = self.strings.get(offset as usize..).unwrap_or_default();
        let name = from.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(name).unwrap_or_default()
    }

    fn id(&self, kind: u32, name: &'a str) -> Option<u32> {
        self.by_name.get(&(kind, name)).copied()
    }

    /// Behind typedefs and qualifiers.
    fn meant(&self, mut id: u32) -> u32 {
        while matches!(
            self.get(id).kind(),
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG
        ) {
            id = self.get(id).size_or_type();
        }
        id
    }
}

/// The BTF of `wanted`, as far as the kernel has it.
pub fn trim(btf: &[u8]) -> Result<Vec<u8>> {
    let source = Source::parse(btf)?;
    let mut trim = Trim {
        source: &source,
        wanted: BTreeMap::new(),
        done: HashMap::new(),
        types: Vec::new(),
        count: 0,
        strings: vec![0],
        offsets: HashMap::new(),
    };
    let structures: Vec<u32> = wanted::FIELDS
        .iter()
        .filter_map(|(name, _)| source.id(STRUCT, name))
        .collect();
    for (name, paths) in wanted::FIELDS {
        for path in *paths {
            trim.want(source.id(STRUCT, name), path);
        }
    }
    for id in structures {
        trim.put(id);
    }
    for name in wanted::ENUMS {
        source.id(ENUM, name).map(|id| trim.put(id));
    }
    for name in wanted::TRACEPOINTS {
        let typedef = format!("btf_trace_{name}");
        let found = source
            .by_name
            .iter()
            .find(|((kind, name), _)| *kind == TYPEDEF && *name == typedef);
        found.map(|(_, id)| trim.put(*id));
    }
    for name in wanted::FUNCTIONS {
        source.id(FUNC, name).map(|id| trim.put(id));
    }
    Ok(trim.finish())
}

struct Trim<'a> {
    source: &'a Source<'a>,
    /// Members to keep, by index, of structures and unions.
    wanted: BTreeMap<u32, BTreeSet<usize>>,
    /// New ids by old.
    done: HashMap<u32, u32>,
    types: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
    offsets: HashMap<String, u32>,
}

impl Trim<'_> {
    /// Marks the members of `path`, as far as they exist.
    fn want(&mut self, structure: Option<u32>, path: &str) {
        let Some(mut at) = structure else { return };
        self.wanted.entry(at).or_default();
        for step in path.split('.') {
            let Some(found) = self.find(at, step) else {
                return;
            };
            for (of, index) in &found {
                self.wanted.entry(*of).or_default().insert(*index);
            }
            let (of, index) = found[found.len() - 1];
            at = self.source.meant(self.member_type(of, index));
        }
    }

    fn member_type(&self, of: u32, index: usize) -> u32 {
        let member = self.source.get(of).parts(3).nth(index);
        member.map_or(0, |member| member[1])
    }

    /// The way to a member, through structures without a name.
    fn find(&self, of: u32, name: &str) -> Option<Vec<(u32, usize)>> {
        let record = self.source.get(of);
        if !record.is_aggregate() {
            return None;
        }
        for (index, member) in record.parts(3).enumerate() {
            let member_name = self.source.name(member[0]);
            if member_name == name {
                return Some(vec![(of, index)]);
            }
            if member_name.is_empty()
                && let Some(inner) = self.find(self.source.meant(member[1]), name)
            {
                return Some([vec![(of, index)], inner].concat());
            }
        }
        None
    }

    /// Writes a type, behind those that it leads to, and gives its new id.
    fn put(&mut self, id: u32) -> u32 {
        if id == 0 {
            return 0;
        }
        if let Some(done) = self.done.get(&id) {
            return *done;
        }
        let record = self.source.get(id);
        let (info, to) = (record.word(1), record.size_or_type());
        let written = match record.kind() {
            PTR => self.write(0, info, 0, &[]),
            TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                let name = self.string(record.word(0));
                // Only a tracepoint's leads on: to the pointer to its prototype.
                let to = match self.source.get(to) {
                    pointer if pointer.kind() == PTR && record.kind() == TYPEDEF => {
                        let to = self.put(pointer.size_or_type());
                        self.write(0, pointer.word(1), to, &[])
                    }
                    _ => self.put(to),
                };
                self.write(name, info, to, &[])
            }
            STRUCT | UNION => {
                let keep = self.wanted.get(&id).cloned().unwrap_or_default();
                let mut members = Vec::new();
                let count = keep.len() as u32;
                for (index, member) in record.parts(3).enumerate() {
                    if keep.contains(&index) {
                        let name = self.string(member[0]);
                        members.extend([name, self.put(member[1]), member[2]]);
                    }
                }
                let name = self.string(record.word(0));
                self.write(name, (info & !0xffff) | count, to, &members)
            }
            ARRAY => {
                let array: Vec<u32> = record.parts(3).flatten().collect();
                let parts = [self.put(array[0]), self.put(array[1]), array[2]];
                self.write(0, info, to, &parts)
            }
            ENUM => {
                let mut values = Vec::new();
                for value in record.parts(2) {
                    values.extend([self.string(value[0]), value[1]]);
                }
                let name = self.string(record.word(0));
                self.write(name, info, to, &values)
            }
            FUNC_PROTO => {
                let mut parameters = Vec::new();
                for parameter in record.parts(2) {
                    let name = self.string(parameter[0]);
                    parameters.extend([name, self.put(parameter[1])]);
                }
                let to = self.put(to);
                self.write(0, info, to, &parameters)
            }
            FUNC => {
                let (name, to) = (self.string(record.word(0)), self.put(to));
                self.write(name, info, to, &[])
            }
            _ => {
                let name = self.string(record.word(0));
                let rest: Vec<u32> = record.parts(1).flatten().collect();
                self.write(name, info, to, &rest)
            }
        };
        self.done.insert(id, written);
        written
    }

    fn write(&mut self, name: u32, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        for word in [&[name, info, size_or_type], rest].concat() {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn string(&mut self, offset: u32) -> u32 {
        let name = self.source.name(offset);
        if name.is_empty() {
            return 0;
        }
        *self.offsets.entry(name.to_owned()).or_insert_with(|| {
            let at = self.strings.len() as u32;
            self.strings.extend(name.bytes());
            self.strings.push(0);
            at
        })
    }

    fn finish(self) -> Vec<u8> {
        let mut btf = MAGIC.to_le_bytes().to_vec();
        btf.extend([1, 0]); // version, flags
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [HEADER_LEN as u32, 0, types, types, strings] {
            btf.extend(word.to_le_bytes());
        }
        btf.extend(self.types);
        btf.extend(self.strings);
        btf
    }
}
