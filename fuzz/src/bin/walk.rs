//! The target for libFuzzer; `cargo lab fuzz` builds it with what it needs. The dump's path is in
//! PCT_VMI_FUZZ_DUMP.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use walk_fuzz::{Bounded, Subject};

#[global_allocator]
static HELD: Bounded = Bounded::new();
static SUBJECT: OnceLock<Subject> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let open = || {
        let path = std::env::var_os("PCT_VMI_FUZZ_DUMP").map(PathBuf::from);
        Subject::open(&path.expect("PCT_VMI_FUZZ_DUMP names a dump")).expect("a guest's dump")
    };
    SUBJECT.get_or_init(open).check(input, &HELD);
});
