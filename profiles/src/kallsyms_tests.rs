use proptest::prelude::*;

use super::*;

const BASE: u64 = 0xffff_ffff_9bc0_0000;
const RELATIVE_BASE: u64 = 0xffff_ffff_9bc0_0000;

/// Which kernels lay their tables out so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// 5.10, 6.1: offsets, base, count, names, markers, tokens; absolute per-CPU symbols.
    Before,
    /// 6.12: count, names, markers, tokens, offsets, base.
    Behind,
    /// 7.3: as 6.12 without a base, offsets from their own addresses, names aligned to four bytes.
    Own,
}

struct Built {
    image: Vec<u8>,
    symbols: Vec<(String, u64)>,
    /// Offsets in the image: count, names, token table, token index, offsets, base.
    places: [usize; 6],
}

fn pad(bytes: &mut Vec<u8>, align: usize) {
    bytes.resize(bytes.len().next_multiple_of(align), 0);
}

fn symbols(count: usize) -> Vec<(String, u64)> {
    let mut symbols: Vec<(String, u64)> = (0..count)
        .map(|i| {
            (
                format!("function_number_{i}"),
                BASE + 0x1000 + 16 * i as u64,
            )
        })
        .collect();
    symbols[3] = ("_stext".into(), BASE);
    symbols[count - 2] = ("init_top_pgt".into(), BASE + 0x1a1_0000);
    // Long enough for a length of two bytes.
    symbols[7].0 = "n".repeat(200);
    symbols
}

/// The 256 tokens: printable characters stand for themselves, some others for pairs.
fn token(code: u8) -> Vec<u8> {
    match code {
        1 => b"fun".to_vec(),
        2 => b"ction_".to_vec(),
        0x21..=0x7e => vec![code],
        _ => vec![b'~', b'a' + code % 26],
    }
}

fn compress(name: &str) -> Vec<u8> {
    let name = format!("T{name}")
        .replace("fun", "\x01")
        .replace("ction_", "\x02");
    name.into_bytes()
}

fn build(layout: Layout, count: usize) -> Built {
    let symbols = symbols(count);
    let mut image = vec![0xcc; 4099];
    let mut places = [0; 6];
    let entry = |at: usize, address: u64| match layout {
        Layout::Before => (RELATIVE_BASE.wrapping_sub(1).wrapping_sub(address)) as u32,
        Layout::Behind => (address - RELATIVE_BASE) as u32,
        Layout::Own => address.wrapping_sub(BASE + at as u64) as u32,
    };
    let put_offsets = |image: &mut Vec<u8>| {
        pad(image, 8);
        let start = image.len();
        for (_, address) in &symbols {
            let value = entry(image.len(), *address);
            image.extend(value.to_le_bytes());
        }
        pad(image, 8);
        let base = image.len();
        if layout != Layout::Own {
            image.extend(RELATIVE_BASE.to_le_bytes());
        }
        (start, base)
    };
    pad(&mut image, 8);
    if layout == Layout::Before {
        (places[4], places[5]) = put_offsets(&mut image);
    }
    places[0] = image.len();
    image.extend((count as u32).to_le_bytes());
    pad(&mut image, if layout == Layout::Own { 4 } else { 8 });
    places[1] = image.len();
    let mut markers = Vec::new();
    for (index, (name, _)) in symbols.iter().enumerate() {
        if index % 256 == 0 {
            markers.extend(((image.len() - places[1]) as u32).to_le_bytes());
        }
        let name = compress(name);
        if name.len() < 128 {
            image.push(name.len() as u8);
        } else {
            image.extend([name.len() as u8 | 0x80, (name.len() >> 7) as u8]);
        }
        image.extend(name);
    }
    pad(&mut image, if layout == Layout::Own { 4 } else { 8 });
    image.extend(markers);
    pad(&mut image, 8);
    places[2] = image.len();
    let mut index = Vec::new();
    for code in 0..=255 {
        index.extend(((image.len() - places[2]) as u16).to_le_bytes());
        image.extend(token(code));
        image.push(0);
    }
    pad(&mut image, 8);
    places[3] = image.len();
    image.extend(index);
    if layout != Layout::Before {
        (places[4], places[5]) = put_offsets(&mut image);
    }
    image.extend([0xcc; 4096]);
    Built {
        image,
        symbols,
        places,
    }
}

impl Built {
    fn image(&self) -> Image<'_> {
        Image {
            base: BASE,
            bytes: &self.image,
        }
    }

    fn info(&self, with_tables: bool) -> Vmcoreinfo {
        let mut text = format!("SYMBOL(swapper_pg_dir)={:x}\n", BASE + 0x1a1_0000);
        let names = [
            "num_syms",
            "names",
            "token_table",
            "token_index",
            "offsets",
            "relative_base",
        ];
        for (name, at) in names.iter().zip(self.places) {
            if with_tables {
                text += &format!("SYMBOL(kallsyms_{name})={:x}\n", BASE + at as u64);
            }
        }
        Vmcoreinfo::parse(&text)
    }

    fn assert_read(&self, info: Option<&Vmcoreinfo>) {
        let kallsyms = Kallsyms::find(self.image(), info).unwrap();
        let last = &self.symbols[self.symbols.len() - 1];
        let long = &self.symbols[7];
        let wanted = ["_stext", "init_top_pgt", &last.0, &long.0, "absent"];
        let expected = [
            Some(BASE),
            Some(BASE + 0x1a1_0000),
            Some(last.1),
            Some(long.1),
            None,
        ];
        assert_eq!(kallsyms.lookup(wanted), expected);
    }
}

#[test]
fn every_layout_is_found_by_search_and_by_vmcoreinfo() {
    for layout in [Layout::Before, Layout::Behind, Layout::Own] {
        for count in [300, 256, 1000] {
            let built = build(layout, count);
            built.assert_read(None);
            built.assert_read(Some(&built.info(false)));
            if layout != Layout::Own {
                built.assert_read(Some(&built.info(true)));
            }
        }
    }
}

#[test]
fn tables_that_give_wrong_addresses_are_refused() {
    let built = build(Layout::Behind, 300);
    let moved = Image {
        base: BASE + 0x1000,
        bytes: &built.image,
    };
    assert_eq!(
        Kallsyms::find(moved, None).unwrap_err(),
        KallsymsError::Calibration
    );
    let info = Vmcoreinfo::parse("SYMBOL(swapper_pg_dir)=ffffffff9bc00000\n");
    let wrong = Kallsyms::find(built.image(), Some(&info)).unwrap_err();
    assert_eq!(wrong, KallsymsError::Calibration);
    let empty = Image {
        base: BASE,
        bytes: &built.image[..4000],
    };
    assert!(matches!(
        Kallsyms::find(empty, None),
        Err(KallsymsError::NotFound(_))
    ));
}

proptest! {
    #[test]
    fn digit_tokens_are_found_at_every_offset(start in 0usize..200, tail in 0usize..64) {
        let mut bytes = vec![b'7'; start];
        bytes.extend(DIGIT_TOKENS);
        bytes.extend(vec![0; tail]);
        prop_assert_eq!(find_digit_tokens(&bytes), Some(start));
        prop_assert_eq!(find_digit_tokens(&bytes[..start + DIGIT_TOKENS.len() - 1]), None);
    }

    #[test]
    fn hostile_images_never_panic(
        layout in prop::sample::select(vec![Layout::Before, Layout::Behind, Layout::Own]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..200),
        symbols in prop::collection::vec(any::<u64>(), 6),
        with_tables in any::<bool>(),
    ) {
        let mut built = build(layout, 300);
        for (at, byte) in changes {
            let at = at.index(built.image.len());
            built.image[at] = byte;
        }
        if with_tables {
            let names =
                ["num_syms", "names", "token_table", "token_index", "offsets", "relative_base"];
            // Some in the image, some anywhere.
            let place = |value: u64| match value % 3 {
                0 => value,
                1 => u64::MAX - value % 16,
                _ => BASE + value % built.image.len() as u64,
            };
            let lines = names.iter().zip(&symbols);
            let text: String = lines
                .map(|(name, value)| format!("SYMBOL(kallsyms_{name})={:x}\n", place(*value)))
                .collect();
            let _ = Kallsyms::find(built.image(), Some(&Vmcoreinfo::parse(&text)));
        }
        if let Ok(kallsyms) = Kallsyms::find(built.image(), None) {
            let _ = kallsyms.lookup(["_stext", "absent"]);
        }
    }
}
