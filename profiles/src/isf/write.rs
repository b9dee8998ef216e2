//! ISF from BTF and symbols. Everything that the kernel describes goes in: what Volatility's plugins
//! ask for is theirs to know. Of types that share a name the first has it, others get one of theirs.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::{BANNER, BaseType, Descriptor, EnumType, Isf, Member, Symbol, UNNAMED, UserType};
use crate::btf::Btf;
use crate::btf::view::{self, View};

/// Types nested in each other in one member: pointers to pointers, arrays of arrays.
const DEPTH_MAX: usize = 32;

/// kallsyms tells no types; BTF has those of per-CPU variables only. Of these symbols Volatility reads
/// the value (volatility3/framework/symbols/linux, plugins/linux). `*` is a pointer.
const TYPED_SYMBOLS: [(&str, &str); 18] = [
    ("file_systems", "*file_system_type"),
    ("init_files", "files_struct"),
    ("init_mm", "mm_struct"),
    ("init_nsproxy", "nsproxy"),
    ("init_pid_ns", "pid_namespace"),
    ("init_task", "task_struct"),
    ("init_uts_ns", "uts_namespace"),
    ("iomem_resource", "resource"),
    ("mem_section", "**mem_section"),
    ("module_kset", "*kset"),
    ("modules", "list_head"),
    ("mount_hashtable", "*hlist_head"),
    ("net_namespace_list", "list_head"),
    ("page_offset_base", "long unsigned int"),
    ("phys_base", "long unsigned int"),
    ("root_mem_cgroup", "*mem_cgroup"),
    ("super_blocks", "list_head"),
    ("vmemmap_base", "long unsigned int"),
];

impl<'a> Isf<'a> {
    /// Everything that `kernel` and its modules' BTF describe, with symbols at their link addresses.
    /// `banner` is what `linux_banner` points to, without its NUL.
    pub fn new(
        kernel: &Btf<'a>,
        modules: &[Btf<'a>],
        symbols: impl IntoIterator<Item = (String, u64)>,
        banner: &[u8],
    ) -> Isf<'a> {
        let mut isf = Isf {
            metadata: json!({
                "producer": {"name": "pct-vmi", "version": env!("CARGO_PKG_VERSION")},
                "format": "6.2.0",
                "linux": {"symbols": [], "types": []},
            }),
            base_types: BTreeMap::from([
                ("pointer".into(), BaseType::new("int", 8, false)),
                ("void".into(), BaseType::new("void", 0, false)),
                // Enums and symbols' types refer to these by name.
                ("unsigned int".into(), BaseType::new("int", 4, false)),
                ("long unsigned int".into(), BaseType::new("int", 8, false)),
                ("char".into(), BaseType::new("char", 1, true)),
            ]),
            user_types: BTreeMap::new(),
            enums: BTreeMap::new(),
            symbols: BTreeMap::new(),
        };
        let blobs: Vec<&Btf<'a>> = std::iter::once(kernel).chain(modules).collect();
        let names = names(&blobs);
        let units = blobs.iter().enumerate().map(|(index, btf)| Unit {
            btf,
            index,
            names: &names,
        });
        for unit in units.clone() {
            for id in unit.btf.ids() {
                isf.add_type(&unit, id);
            }
        }
        // Declarations last: a module may have the definition.
        for unit in units {
            for id in unit.btf.ids() {
                isf.add_forward(&unit, id);
            }
        }
        isf.add_symbols(kernel, &names, symbols, banner);
        isf
    }

    fn add_type(&mut self, unit: &Unit<'_, 'a>, id: u32) {
        match unit.btf.view(id) {
            Some(View::Int {
                name,
                bytes,
                is_signed,
                is_char,
                is_bool,
            }) => {
                let kind = match (is_bool, is_char || name.ends_with("char")) {
                    (true, _) => "bool",
                    (_, true) if bytes == 1 => "char",
                    _ => "int",
                };
                let base = BaseType::new(kind, bytes, is_signed);
                self.base_types.entry(name.into()).or_insert(base);
            }
            Some(View::Float { name, bytes }) => {
                let base = BaseType::new("float", bytes, true);
                self.base_types.entry(name.into()).or_insert(base);
            }
            Some(View::Composite {
                name,
                is_union,
                bytes,
                members,
            }) => {
                let fields = members.iter().enumerate();
                let fields = fields.map(|(index, member)| unit.field(index, member));
                let user = UserType {
                    kind: if is_union { "union" } else { "struct" }.into(),
                    size: bytes,
                    fields: fields.collect(),
                };
                self.user_types
                    .entry(unit.name_of(name, id))
                    .or_insert(user);
            }
            Some(View::Enum {
                name,
                bytes,
                constants,
            }) => {
                let base = if bytes == 8 {
                    "long unsigned int"
                } else {
                    "unsigned int"
                };
                let constants = constants.into_iter();
                let of = EnumType {
                    size: bytes,
                    base: base.into(),
                    constants: constants
                        .map(|(name, value)| (name.into(), value))
                        .collect(),
                };
                self.enums.entry(unit.name_of(name, id)).or_insert(of);
            }
            _ => {}
        }
    }

    /// What is only declared has no members: pointers to it need a name all the same.
    fn add_forward(&mut self, unit: &Unit<'_, 'a>, id: u32) {
        if let Some(View::Forward { name, is_union }) = unit.btf.view(id) {
            let user = UserType {
                kind: if is_union { "union" } else { "struct" }.into(),
                size: 0,
                fields: BTreeMap::new(),
            };
            self.user_types.entry(name.into()).or_insert(user);
        }
    }

    fn add_symbols(
        &mut self,
        kernel: &Btf<'a>,
        names: &Names<'a>,
        symbols: impl IntoIterator<Item = (String, u64)>,
        banner: &[u8],
    ) {
        let kernel = Unit {
            btf: kernel,
            index: 0,
            names,
        };
        let mut types: BTreeMap<&str, Descriptor<'a>> = BTreeMap::new();
        for id in kernel.btf.ids() {
            if let Some(View::Variable { name, type_id }) = kernel.btf.view(id) {
                types.insert(name, kernel.descriptor(type_id, DEPTH_MAX));
            }
        }
        for (symbol, name) in TYPED_SYMBOLS {
            let target = name.trim_start_matches('*');
            let target = if self.base_types.contains_key(target) {
                Descriptor::Base {
                    name: target.into(),
                }
            } else {
                Descriptor::Struct {
                    name: target.into(),
                }
            };
            let pointers = name.bytes().take_while(|&byte| byte == b'*');
            let whole = pointers.fold(target, |to, _| Descriptor::Pointer {
                subtype: Box::new(to),
            });
            types.insert(symbol, whole);
        }
        let mut banner_data = banner.to_vec();
        banner_data.push(0);
        for (name, address) in symbols {
            let mut symbol = Symbol {
                descriptor: types.get(name.as_str()).cloned().or(Some(void())),
                address,
                constant_data: None,
            };
            if name == BANNER {
                symbol.constant_data = Some(BASE64_STANDARD.encode(&banner_data).into());
                symbol.descriptor = Some(Descriptor::Array {
                    count: banner_data.len() as u32,
                    subtype: Box::new(Descriptor::Base {
                        name: "char".into(),
                    }),
                });
            }
            self.symbols.entry(name.into()).or_insert(symbol);
        }
    }
}

impl BaseType {
    fn new(kind: &'static str, size: u32, signed: bool) -> BaseType {
        BaseType {
            size,
            signed,
            kind: kind.into(),
            endian: "little".into(),
        }
    }
}

fn void<'a>() -> Descriptor<'a> {
    Descriptor::Base {
        name: "void".into(),
    }
}

/// Which type has a name: the blob's index and the type's id.
type Names<'a> = HashMap<&'a str, (usize, u32)>;

fn names<'a>(blobs: &[&Btf<'a>]) -> Names<'a> {
    let mut names = Names::new();
    for (index, btf) in blobs.iter().enumerate() {
        for id in btf.ids() {
            if let Some(View::Composite { name, .. } | View::Enum { name, .. }) = btf.view(id) {
                names.entry(name).or_insert((index, id));
            }
        }
    }
    names
}

/// One of the blobs.
#[derive(Clone)]
struct Unit<'b, 'a> {
    btf: &'b Btf<'a>,
    index: usize,
    names: &'b Names<'a>,
}

impl<'a> Unit<'_, 'a> {
    fn name_of(&self, name: &'a str, id: u32) -> Cow<'a, str> {
        let of = if self.btf.ids().contains(&id) {
            self.index
        } else {
            0
        };
        if name.is_empty() {
            format!("{UNNAMED}{of:x}_{id:x}").into()
        } else if self.names.get(name) == Some(&(of, id)) {
            name.into()
        } else {
            format!("{name}_{of:x}_{id:x}").into()
        }
    }

    fn field(&self, index: usize, member: &view::Member<'a>) -> (Cow<'a, str>, Member<'a>) {
        let of = self.descriptor(member.type_id, DEPTH_MAX);
        let anonymous = member.name.is_empty();
        let name = if anonymous {
            format!("unnamed_field_{index:x}").into()
        } else {
            member.name.into()
        };
        let (descriptor, bit_offset) = if member.bit_width == 0 {
            (of, member.bit_offset)
        } else {
            // Volatility reads the whole of the declared type and takes the bits from it.
            let bytes = self.btf.bytes_of(member.type_id).unwrap_or(4);
            let unit = bytes.saturating_mul(8).max(8);
            let start = member.bit_offset / unit * unit;
            let bits = Descriptor::Bitfield {
                bit_position: member.bit_offset - start,
                bit_length: member.bit_width,
                of: Box::new(of),
            };
            (bits, start)
        };
        let member = Member {
            descriptor,
            offset: bit_offset / 8,
            anonymous,
        };
        (name, member)
    }

    fn descriptor(&self, id: u32, depth: usize) -> Descriptor<'a> {
        let Some(below) = depth.checked_sub(1) else {
            return void();
        };
        match self.btf.view(id) {
            Some(View::Int { name, .. } | View::Float { name, .. }) => {
                Descriptor::Base { name: name.into() }
            }
            Some(View::Pointer(to)) => Descriptor::Pointer {
                subtype: Box::new(self.descriptor(to, below)),
            },
            Some(View::Array { element, count }) => Descriptor::Array {
                count,
                subtype: Box::new(self.descriptor(element, below)),
            },
            Some(View::Composite { name, is_union, .. }) => {
                Descriptor::composite(is_union, self.name_of(name, id))
            }
            Some(View::Forward { name, is_union }) => Descriptor::composite(is_union, name.into()),
            Some(View::Enum { name, .. }) => Descriptor::Enum {
                name: self.name_of(name, id),
            },
            Some(View::Alias(behind)) => self.descriptor(behind, below),
            Some(View::Function) => Descriptor::Function,
            Some(View::Variable { .. } | View::Other) | None => void(),
        }
    }
}

impl<'a> Descriptor<'a> {
    fn composite(is_union: bool, name: Cow<'a, str>) -> Descriptor<'a> {
        if is_union {
            Descriptor::Union { name }
        } else {
            Descriptor::Struct { name }
        }
    }
}
