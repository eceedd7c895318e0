//! What the running kernel's BTF says: offsets of fields, values of enums, indices of arguments.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use btf_rs::{Backend, BtfType, Struct, Type};

/// Where the kernel shows its own BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's type information. Parsed on demand, meant to be dropped after start.
pub struct Btf {
    btf: btf_rs::Btf,
    path: PathBuf,
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
            btf,
            path: path.to_owned(),
        })
    }

    /// The type information of a kernel module on top of this, where the module is loaded.
    pub fn module(&self, name: &str) -> Result<Self> {
        let path = Path::new("/sys/kernel/btf").join(name);
        let btf = btf_rs::Btf::from_split_file(&path, &self.btf)
            .with_context(|| format!("cannot read the module's BTF at {}", path.display()))?;
        Ok(Self { btf, path })
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
        self.types(name)
            .is_ok_and(|types| types.iter().any(|t| matches!(t, Type::Func(_))))
    }

    /// Size of a structure, bytes.
    pub fn size(&self, structure: &str) -> Result<u32> {
        Ok(self.structure(structure)?.size() as u32)
    }

    /// The members of an enum, by name.
    pub fn enumeration(&self, name: &str) -> Result<BTreeMap<String, u32>> {
        let members = self
            .types(name)?
            .into_iter()
            .find_map(|t| match t {
                Type::Enum(e) => Some(e.members),
                _ => None,
            })
            .ok_or_else(|| anyhow!("no enum {name} in {}", self.path.display()))?;
        members
            .iter()
            .map(|m| Ok((self.btf.resolve_name(m)?, m.val())))
            .collect()
    }

    /// Index of the argument of type `enum ENUMERATION` in the raw arguments of a tracepoint.
    pub fn tracepoint_argument(&self, tracepoint: &str, enumeration: &str) -> Result<u32> {
        let missing = || anyhow!("tracepoint {tracepoint} has no argument enum {enumeration}");
        for (index, parameter) in self.tracepoint(tracepoint)?.iter().enumerate() {
            let Ok(kind) = self.btf.resolve_chained_type(parameter) else {
                continue;
            };
            if let Type::Enum(e) = &kind
                && self.btf.resolve_name(e)? == enumeration
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
            .types(&typedef)?
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
        let mut found = self.btf.resolve_chained_type(from)?;
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
            found = self.btf.resolve_chained_type(next)?;
        }
        Ok(found)
    }

    fn types(&self, name: &str) -> Result<Vec<Type>> {
        self.btf
            .resolve_types_by_name(name)
            .with_context(|| format!("no type {name} in {}", self.path.display()))
    }

    fn structure(&self, name: &str) -> Result<Struct> {
        self.types(name)?
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
                let next = self.btf.resolve_chained_type(from.as_btf_type()?).ok()?;
                self.as_structure(next)
            }
            _ => None,
        }
    }

    /// Bit offset and type of a member.
    fn member(&self, of: &Struct, name: &str) -> Option<(u32, Type)> {
        for member in &of.members {
            let kind = self.btf.resolve_chained_type(member).ok()?;
            let member_name = self.btf.resolve_name(member).unwrap_or_default();
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
