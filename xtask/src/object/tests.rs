//! Objects with one fault each, and what the check says of them.

use object::{
    BinaryFormat, SymbolFlags, SymbolKind, SymbolScope,
    write::{self, Relocation, SymbolSection},
};

use super::*;

const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// An object with one program and one map, and a call in the program.
struct Fixture {
    architecture: Architecture,
    licence: &'static [u8],
    section: &'static str,
    /// Source register and immediate.
    call: (u8, i32),
    undefined: Option<&'static str>,
    function: &'static str,
}

const FIT: Fixture = Fixture {
    architecture: Architecture::Bpf,
    licence: b"Dual MIT/GPL\0",
    section: "raw_tp/kfree_skb",
    call: (0, 5),
    undefined: None,
    function: "memcpy",
};

impl Fixture {
    fn bytes(&self) -> Vec<u8> {
        let endian = if cfg!(target_endian = "little") {
            object::Endianness::Little
        } else {
            object::Endianness::Big
        };
        let mut object = write::Object::new(BinaryFormat::Elf, self.architecture, endian);
        let mut section = |name: &str, kind, data: &[u8]| {
            let id = object.add_section(Vec::new(), name.as_bytes().to_vec(), kind);
            object.append_section_data(id, data, 8);
            id
        };
        section("license", SectionKind::Data, self.licence);
        section(".BTF", SectionKind::Other, b"btf");
        section(".debug_info", SectionKind::Debug, &[0; 4096]);
        let maps = section("maps", SectionKind::Data, &[0; 28]);
        let (register, immediate) = self.call;
        let register = if cfg!(target_endian = "little") {
            register << 4
        } else {
            register
        };
        let mut code = vec![0x85, register, 0, 0];
        code.extend(immediate.to_ne_bytes());
        code.extend(EXIT);
        let text = section(self.section, SectionKind::Text, &code);
        let mut symbol = |name: &str, section| {
            object.add_symbol(write::Symbol {
                name: name.as_bytes().to_vec(),
                value: 0,
                size: 8,
                kind: SymbolKind::Data,
                scope: SymbolScope::Dynamic,
                weak: false,
                section,
                flags: SymbolFlags::None,
            })
        };
        symbol("hook", SymbolSection::Section(text));
        symbol(self.function, SymbolSection::Section(text));
        symbol("MAP", SymbolSection::Section(maps));
        if let Some(name) = self.undefined {
            let symbol = symbol(name, SymbolSection::Undefined);
            let relocation = Relocation {
                offset: 0,
                symbol,
                addend: 0,
                flags: object::write::RelocationFlags::Elf { r_type: 10 },
            };
            object.add_relocation(text, relocation).unwrap();
        }
        object.write().unwrap()
    }

    fn check(&self) -> Result<Summary> {
        check_for(&self.bytes(), &[("hook", "raw_tp")], &["MAP"])
    }

    fn fails_with(&self, what: &str) {
        let error = self.check().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_fit_object_is_summed_up() {
    let summary = FIT.check().unwrap();
    assert_eq!(
        (summary.instructions, summary.programs, summary.maps),
        (2, 1, 1)
    );
}

#[test]
fn everything_that_is_missing_is_named() {
    let error = check_for(&FIT.bytes(), &[("age", "raw_tp")], &["RING", "MAP"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "program age is missing; map RING is missing"
    );
}

#[test]
fn a_program_of_another_type_is_refused() {
    Fixture {
        section: "raw_tp.w",
        ..FIT
    }
    .fails_with("is in section raw_tp.w, not raw_tp");
}

#[test]
fn dwarf_is_stripped_and_the_rest_stays() {
    let bytes = FIT.bytes();
    let stripped = strip(&bytes).unwrap();
    assert!(stripped.len() < bytes.len());
    let sections = |bytes: &[u8]| -> Vec<String> {
        let file = ElfFile64::<Endianness>::parse(bytes).unwrap();
        file.sections()
            .map(|section| section.name().unwrap().to_owned())
            .collect()
    };
    assert!(sections(&bytes).contains(&".debug_info".to_owned()));
    assert!(!sections(&stripped).contains(&".debug_info".to_owned()));
    check_for(&stripped, &[("hook", "raw_tp")], &["MAP"]).unwrap();
}

#[test]
fn other_machines_and_damaged_files_are_refused() {
    Fixture {
        architecture: Architecture::X86_64,
        ..FIT
    }
    .fails_with("built for X86_64");
    assert!(check(b"").is_err());
    assert!(check(&FIT.bytes()[..70]).is_err());
}

#[test]
fn a_licence_that_the_kernel_takes_for_closed_is_refused() {
    Fixture {
        licence: b"MIT\0",
        ..FIT
    }
    .fails_with("licence `MIT`");
}

#[test]
fn panics_are_refused() {
    Fixture {
        function: "_RNvNtCsc9IQzU3lXcw_4core9panicking9panic_fmt",
        ..FIT
    }
    .fails_with("a panic is left");
}

#[test]
fn calls_that_lead_nowhere_are_refused() {
    Fixture {
        call: (0, 0),
        ..FIT
    }
    .fails_with("a call to nothing at instruction 0");
    Fixture {
        call: (1, -1),
        ..FIT
    }
    .fails_with("a call to nothing at instruction 0");
    Fixture {
        call: (1, 0),
        ..FIT
    }
    .check()
    .unwrap();
    Fixture {
        call: (1, -1),
        undefined: Some("missing"),
        ..FIT
    }
    .fails_with("missing in raw_tp/kfree_skb is undefined");
}
