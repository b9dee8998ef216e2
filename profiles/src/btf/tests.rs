use proptest::prelude::*;

use super::*;

/// Builds BTF as pahole writes it.
#[derive(Default)]
pub(crate) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Builder {
    fn name(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// A type with its trailing words; returns its id.
    pub(crate) fn add(
        &mut self,
        kind: u32,
        name: &str,
        vlen: usize,
        last: u32,
        rest: &[u32],
    ) -> u32 {
        let name = self.name(name);
        self.words(&[name, kind << 24 | vlen as u32, last]);
        self.words(rest);
        self.count += 1;
        self.count
    }

    pub(crate) fn int(&mut self, bytes: u32) -> u32 {
        self.add(KIND_INT, "int", 0, bytes, &[bytes * 8])
    }

    /// Members are name, type and bit offset.
    pub(crate) fn composite(
        &mut self,
        kind: u32,
        name: &str,
        bytes: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let words: Vec<u32> = members
            .iter()
            .flat_map(|&(name, id, bits)| [self.name(name), id, bits])
            .collect();
        self.add(kind, name, members.len(), bytes, &words)
    }

    /// As [`Builder::composite`], of members made by [`Builder::bit_field`] and such without width.
    pub(crate) fn flagged(
        &mut self,
        kind: u32,
        name: &str,
        bytes: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        self.composite(kind | 1 << 7, name, bytes, members)
    }

    /// A member's offset that tells a bit-field's width too.
    pub(crate) fn bit_field(width: u32, bit: u32) -> u32 {
        width << 24 | bit
    }

    /// What follows an enum of these constants.
    pub(crate) fn enumerators(&mut self, constants: &[(&str, u32)]) -> Vec<u32> {
        constants
            .iter()
            .flat_map(|&(name, value)| [self.name(name), value])
            .collect()
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut data = Vec::new();
        data.extend(BTF_MAGIC.to_le_bytes());
        data.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            data.extend(word.to_le_bytes());
        }
        data.extend(&self.types);
        data.extend(&self.strings);
        data
    }
}

fn sample() -> Vec<u8> {
    let mut b = Builder::default();
    let u64_id = b.int(8);
    let u8_id = b.int(1);
    let typedef = b.add(KIND_TYPEDEF, "pgoff_t", 0, u64_id, &[]);
    let constant = b.add(KIND_CONST, "", 0, typedef, &[]);
    let array = b.add(KIND_ARRAY, "", 0, 0, &[constant, u8_id, 64]);
    let pointer = b.add(KIND_PTR, "", 0, 0, &[]);
    let inner = b.composite(
        KIND_STRUCT,
        "",
        16,
        &[("index", typedef, 0), ("tail", u8_id, 64)],
    );
    let union = b.composite(
        KIND_UNION,
        "",
        16,
        &[("mapping", pointer, 0), ("", inner, 0)],
    );
    b.composite(
        KIND_STRUCT,
        "page",
        40,
        &[("flags", u64_id, 0), ("", union, 64), ("p", pointer, 192)],
    );
    b.composite(
        KIND_STRUCT,
        "xa_node",
        520,
        &[("shift", u8_id, 0), ("slots", array, 64)],
    );
    // Types between that are not looked at, with what follows them.
    b.add(KIND_DATASEC, ".data..percpu", 1, 8, &[1, 0, 8]);
    b.add(KIND_FUNC_PROTO, "", 2, 0, &[0, 1, 0, 2]);
    b.add(KIND_DECL_TAG, "tag", 0, 1, &[0]);
    let (dirty, far) = (b.name("PG_dirty"), b.name("EXTENT_FLAG_FAR"));
    b.add(KIND_ENUM, "pageflags", 2, 4, &[0, 0, dirty, 3]);
    b.add(KIND_ENUM64, "wide", 1, 8, &[far, 1, 2]);
    b.composite(KIND_STRUCT, "after", 8, &[("all", u64_id, 0)]);
    b.build()
}

#[test]
fn members_are_found_through_anonymous_ones() {
    let data = sample();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.struct_size("page"), Some(40));
    assert_eq!(
        btf.field("page", "flags"),
        Some(Field { offset: 0, size: 8 })
    );
    assert_eq!(
        btf.field("page", "mapping"),
        Some(Field { offset: 8, size: 8 })
    );
    assert_eq!(
        btf.field("page", "index"),
        Some(Field { offset: 8, size: 8 })
    );
    assert_eq!(
        btf.field("page", "tail"),
        Some(Field {
            offset: 16,
            size: 1
        })
    );
    assert_eq!(
        btf.field("page", "p"),
        Some(Field {
            offset: 24,
            size: 8
        })
    );
    assert_eq!(
        btf.field("xa_node", "slots"),
        Some(Field {
            offset: 8,
            size: 512
        })
    );
    assert_eq!(
        btf.field("after", "all"),
        Some(Field { offset: 0, size: 8 })
    );
    assert_eq!(btf.field("page", "absent"), None);
    assert_eq!(btf.field("absent", "flags"), None);
}

#[test]
fn enumerators_have_their_values() {
    let data = sample();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.enumerator("pageflags", "PG_dirty"), Some(3));
    assert_eq!(
        btf.enumerator("wide", "EXTENT_FLAG_FAR"),
        Some(0x2_0000_0001)
    );
    assert_eq!(btf.enumerator("pageflags", "PG_absent"), None);
}

#[test]
fn bit_fields_are_no_fields() {
    let mut b = Builder::default();
    let int = b.int(4);
    let bits = Builder::bit_field(3, 8);
    b.flagged(
        KIND_STRUCT,
        "s",
        8,
        &[("whole", int, 32), ("bits", int, bits)],
    );
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.field("s", "whole"), Some(Field { offset: 4, size: 4 }));
    assert_eq!(btf.field("s", "bits"), None);
}

#[test]
fn a_module_continues_its_kernel() {
    let mut kernel = Builder::default();
    let long = kernel.int(8);
    let inode = kernel.composite(KIND_STRUCT, "inode", 40, &[("i_ino", long, 64)]);
    let (names, ids) = (kernel.strings.clone(), kernel.count);
    let base = kernel.build();
    let base = Btf::parse(&base).unwrap();

    // Its ids and its strings go on where the kernel's end; the name "i_ino" is the kernel's.
    let mut module = Builder::default();
    module.name("x");
    let own = |offset: u32| names.len() as u32 + offset;
    let i_ino = names.windows(5).position(|name| name == b"i_ino").unwrap() as u32;
    let (struct_name, member, flag) = (
        own(module.name("xfs_inode")),
        own(module.name("i_vnode")),
        own(module.name("XFS_FLAG")),
    );
    module.words(&[struct_name, KIND_STRUCT << 24 | 3, 64]);
    module.words(&[
        member,
        inode,
        8 * 8,
        i_ino,
        long,
        48 * 8,
        0,
        ids + 2,
        56 * 8,
    ]);
    module.words(&[0, KIND_STRUCT << 24 | 1, 8, flag, long, 0]);
    module.words(&[0, KIND_ENUM << 24 | 1, 4, flag, 5]);
    let data = module.build();
    let module = Btf::parse_split(&data, &base).unwrap();
    let field = |offset, size| Some(Field { offset, size });
    assert_eq!(module.struct_size("xfs_inode"), Some(64));
    assert_eq!(module.field("xfs_inode", "i_vnode"), field(8, 40));
    assert_eq!(module.field("xfs_inode", "i_ino"), field(48, 8));
    assert_eq!(module.field("xfs_inode", "XFS_FLAG"), field(56, 8));
    assert_eq!(module.enumerator("", "XFS_FLAG"), Some(5));
    assert_eq!(module.struct_size("inode"), None, "the kernel's own");

    let both = crate::Layers(vec![&module, &base]);
    assert_eq!(both.field("inode", "i_ino"), field(8, 8));
    assert_eq!(both.field("xfs_inode", "i_vnode"), field(8, 40));
    assert_eq!(both.enumerator("", "absent"), None);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let mut b = Builder::default();
    b.int(4);
    b.add(27, "new", 0, 0, &[]);
    assert_eq!(
        Btf::parse(&b.build()).unwrap_err(),
        BtfError::UnknownKind { id: 2, kind: 27 }
    );
    let mut swapped = sample();
    swapped.swap(0, 1);
    assert_eq!(Btf::parse(&swapped).unwrap_err(), BtfError::Magic(0x9feb));
    let whole = sample();
    let cut = &whole[..whole.len() - 1];
    assert_eq!(
        Btf::parse(cut).unwrap_err(),
        BtfError::Truncated("the strings", cut.len())
    );
}

#[test]
fn types_that_contain_themselves_end() {
    let mut b = Builder::default();
    // 1: a struct of eight anonymous members of its own type, which are 8^16 ways down; 2: a
    // typedef of itself; 3: an array of itself.
    let mut members = vec![("", 1, 0); 8];
    members.extend([("t", 2, 0), ("a", 3, 0)]);
    b.composite(KIND_STRUCT, "loop", 8, &members);
    b.add(KIND_TYPEDEF, "t", 0, 2, &[]);
    b.add(KIND_ARRAY, "", 0, 0, &[3, 3, u32::MAX]);
    b.composite(KIND_STRUCT, "holder", 8, &[("t", 2, 0), ("a", 3, 0)]);
    let data = b.build();
    let btf = Btf::parse(&data).unwrap();
    assert_eq!(btf.field("loop", "absent"), None);
    let no_size = Some(Field { offset: 0, size: 0 });
    assert_eq!(
        (btf.field("holder", "t"), btf.field("holder", "a")),
        (no_size, no_size)
    );
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        mut data in Just(sample()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        for (at, byte) in changes {
            let at = at.index(data.len());
            data[at] = byte;
        }
        if is_cut {
            data.truncate(cut.index(data.len()));
        }
        if let Ok(btf) = Btf::parse(&data) {
            for name in ["page", "xa_node", "after"] {
                for member in ["flags", "index", "slots", "absent"] {
                    let _ = btf.field(name, member);
                }
            }
            let _ = btf.enumerator("pageflags", "PG_dirty");
            let _ = btf.enumerator("wide", "EXTENT_FLAG_FAR");
            let _ = btf.enumerator("", "PG_dirty");
            let _ = crate::Layouts::resolve(&btf);
            let whole = sample();
            if let Ok(split) = Btf::parse_split(&whole, &btf) {
                let _ = split.field("page", "index");
                let _ = crate::Layouts::resolve(&split);
            }
        }
    }
}
