//! What the running kernel's BTF says: offsets of fields, values of enums, indices of arguments.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use btf_rs::{Backend, BtfType, Struct, Type};

/// Where the kernel shows its own BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's type information. Parsed on demand, meant to be dropped after start.
pub struct Btf {
    types: btf_rs::Btf,
    path: PathBuf,
    /// Ids by name: the library looks through all 100,000 types for each name.
    ids: OnceCell<HashMap<String, Vec<u32>>>,
}

impl Btf {
    /// Opens `path`, usually [`VMLINUX`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            bail!(
                "the kernel shows no BTF at {}: tracer needs a kernel built with \
                 CONFIG_DEBUG_INFO_BTF=y",
                path.display()
            );
        }
        // Mapped, it costs 3 ms and 1 MB; older kernels refuse to map their BTF.
        let btf = btf_rs::Btf::from_file_with_backend(path, Backend::Mmap)
            .or_else(|_| btf_rs::Btf::from_file(path))
            .with_context(|| format!("cannot read the kernel's BTF at {}", path.display()))?;
        Ok(Self {
            types: btf,
            path: path.to_owned(),
            ids: OnceCell::new(),
        })
    }

    /// The type information of a kernel module on top of this, where the module is loaded.
    pub fn module(&self, name: &str) -> Result<Self> {
        let path = Path::new("/sys/kernel/btf").join(name);
        let btf = btf_rs::Btf::from_split_file(&path, &self.types)
            .with_context(|| format!("cannot read the module's BTF at {}", path.display()))?;
        Ok(Self {
            types: btf,
            path,
            ids: OnceCell::new(),
        })
    }

    /// Byte offset of a member, such as `net`, `ns.inum`. Members of anonymous structures and
    /// unions are found as in C.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32> {
        let mut bits = 0;
        let mut found = self.structure(structure)?;
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let (offset, member_type) = self.member(&found, step).with_context(|| {
                format!(
                    "struct {structure} has no member {path} in {}",
                    self.path.display()
                )
            })?;
            bits += offset;
            if steps.peek().is_some() {
                found = self.as_structure(member_type).with_context(|| {
                    format!("struct {structure}: {step} in {path} is no structure")
                })?;
            }
        }
        if bits % 8 != 0 {
            bail!("struct {structure}: {path} is a bit field");
        }
        Ok(bits / 8)
    }

    /// Is a member a plain number? `atomic64_t` and the like are structures.
    pub fn is_integer(&self, structure: &str, member: &str) -> bool {
        self.structure(structure)
            .ok()
            .and_then(|of| self.member(&of, member))
            .is_some_and(|(_, kind)| match kind {
                Type::Int(_) => true,
                other => other
                    .as_btf_type()
                    .and_then(|t| self.follow(t).ok())
                    .is_some_and(|t| matches!(t, Type::Int(_))),
            })
    }

    /// Is there a function of that name that a program can attach to?
    pub fn has_function(&self, name: &str) -> bool {
        self.of_name(name)
            .is_ok_and(|types| types.iter().any(|t| matches!(t, Type::Func(_))))
    }

    /// Size of a structure, bytes.
    pub fn size(&self, structure: &str) -> Result<u32> {
        Ok(self.structure(structure)?.size() as u32)
    }

    /// The members of an enum, by name.
    pub fn enumeration(&self, name: &str) -> Result<BTreeMap<String, u32>> {
        let members = self
            .of_name(name)?
            .into_iter()
            .find_map(|t| match t {
                Type::Enum(e) => Some(e.members),
                _ => None,
            })
            .ok_or_else(|| anyhow!("no enum {name} in {}", self.path.display()))?;
        members
            .iter()
            .map(|m| Ok((self.types.resolve_name(m)?, m.val())))
            .collect()
    }

    /// Index of the argument of type `enum ENUMERATION` in the raw arguments of a tracepoint.
    pub fn tracepoint_argument(&self, tracepoint: &str, enumeration: &str) -> Result<u32> {
        let missing = || anyhow!("tracepoint {tracepoint} has no argument enum {enumeration}");
        for (index, parameter) in self.tracepoint(tracepoint)?.iter().enumerate() {
            let Ok(kind) = self.types.resolve_chained_type(parameter) else {
                continue;
            };
            if let Type::Enum(e) = &kind
                && self.types.resolve_name(e)? == enumeration
            {
                // The first parameter of the prototype is the probe's own `void *`.
                return u32::try_from(index)?.checked_sub(1).ok_or_else(missing);
            }
        }
        Err(missing())
    }

    /// How many raw arguments a tracepoint has.
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Result<u32> {
        let parameters = self.tracepoint(tracepoint)?.len();
        Ok(u32::try_from(parameters)?.saturating_sub(1)) // without the probe's own
    }

    /// Parameters of a tracepoint's probe.
    fn tracepoint(&self, tracepoint: &str) -> Result<Vec<btf_rs::Parameter>> {
        let typedef = format!("btf_trace_{tracepoint}");
        let prototype = self
            .of_name(&typedef)?
            .iter()
            .find(|t| matches!(t, Type::Typedef(_)))
            .and_then(Type::as_btf_type)
            .map(|t| self.follow(t))
            .transpose()?;
        match prototype {
            Some(Type::FuncProto(prototype)) => Ok(prototype.parameters),
            _ => Err(anyhow!(
                "no tracepoint {tracepoint} in {}",
                self.path.display()
            )),
        }
    }

    /// Follows pointers, typedefs and qualifiers to what they mean.
    fn follow(&self, from: &dyn BtfType) -> Result<Type> {
        let mut found = self.types.resolve_chained_type(from)?;
        while matches!(
            found,
            Type::Ptr(_)
                | Type::Typedef(_)
                | Type::Const(_)
                | Type::Volatile(_)
                | Type::Restrict(_)
                | Type::TypeTag(_)
        ) {
            let Some(next) = found.as_btf_type() else {
                break;
            };
            found = self.types.resolve_chained_type(next)?;
        }
        Ok(found)
    }

    fn of_name(&self, name: &str) -> Result<Vec<Type>> {
        let ids = self.ids.get_or_init(|| self.index());
        let ids = ids
            .get(name)
            .ok_or_else(|| anyhow!("no type {name} in {}", self.path.display()))?;
        ids.iter()
            .map(|id| Ok(self.types.resolve_type_by_id(*id)?))
            .collect()
    }

    /// Types that somebody may ask for, by name.
    fn index(&self) -> HashMap<String, Vec<u32>> {
        let mut ids: HashMap<String, Vec<u32>> = HashMap::new();
        // Ids count up from 1, without a gap.
        let types = (1..).map_while(|id| Some((id, self.types.resolve_type_by_id(id).ok()?)));
        for (id, kind) in types {
            if !matches!(
                kind,
                Type::Struct(_) | Type::Enum(_) | Type::Typedef(_) | Type::Func(_)
            ) {
                continue;
            }
            let named = kind.as_btf_type().map(|t| self.types.resolve_name(t));
            if let Some(Ok(name)) = named
                && !name.is_empty()
            {
                ids.entry(name).or_default().push(id);
            }
        }
        ids
    }

    fn structure(&self, name: &str) -> Result<Struct> {
        self.of_name(name)?
            .into_iter()
            .find_map(|t| match t {
                Type::Struct(s) => Some(s),
                _ => None,
            })
            .ok_or_else(|| anyhow!("no struct {name} in {}", self.path.display()))
    }

    fn as_structure(&self, from: Type) -> Option<Struct> {
        match from {
            Type::Struct(s) | Type::Union(s) => Some(s),
            Type::Typedef(_) | Type::Const(_) | Type::Volatile(_) => {
                let next = self.types.resolve_chained_type(from.as_btf_type()?).ok()?;
                self.as_structure(next)
            }
            _ => None,
        }
    }

    /// Bit offset and type of a member.
    fn member(&self, of: &Struct, name: &str) -> Option<(u32, Type)> {
        for member in &of.members {
            let kind = self.types.resolve_chained_type(member).ok()?;
            let member_name = self.types.resolve_name(member).unwrap_or_default();
            if member_name == name {
                return Some((member.bit_offset(), kind));
            }
            if member_name.is_empty()
                && let Some(inner) = self.as_structure(kind)
                && let Some((offset, kind)) = self.member(&inner, name)
            {
                return Some((member.bit_offset() + offset, kind));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_btf_says_what_is_missing() {
        let error = Btf::open("/nonexistent/btf").err().map(|e| e.to_string());
        assert!(error.unwrap().contains("CONFIG_DEBUG_INFO_BTF"));
    }
}
