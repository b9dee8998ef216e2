//! Scans of a guest whose memory lies: a real dump of which an input changes some bytes, where a
//! scan really looks. Whatever the bytes are, a scan ends, does not panic, reads and holds no more
//! than is stated here, and counts every page once.

mod bounded;
mod patched;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use profiles::Profile;

use vmi::{Dump, Gpa, GuestMemory, MemoryError, PAGE_BYTES, Profiles, RamRange, Scan, ScanOptions};

pub use bounded::Bounded;
use patched::{Patch, Patched};

/// Reads that a scan may make for each frame of RAM: a guest can fill RAM with the smallest inodes,
/// eight to a frame, each of which costs some ten reads and page walks.
const READS_A_FRAME_MAX: u64 = 1000;
/// Bytes that a scan may hold for each byte of RAM: the page map and all that leads to it.
const BYTES_A_RAM_BYTE_MAX: usize = 1;
/// Bytes that it may hold beside: the kernel's image, 192 MiB at most, and an index over its types.
const BYTES_MAX: usize = 384 << 20;
/// Changes in one input.
const PATCHES_MAX: usize = 64;
/// Bytes of an input that make one change.
const PATCH_BYTES: usize = 18;

/// A dump, and where in it a scan looks.
pub struct Subject {
    dump: Dump,
    profile: Profile,
    /// Addresses by the number of bytes that are read there: of each kind of struct as likely one is
    /// changed, however many there are.
    spots: Vec<(usize, Vec<u64>)>,
    frames: u64,
}

/// Remembers what is read.
struct Recorder<'d> {
    dump: &'d Dump,
    reads: Mutex<BTreeMap<usize, Vec<u64>>>,
}

impl GuestMemory for Recorder<'_> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        if let Ok(mut reads) = self.reads.lock() {
            reads.entry(buf.len()).or_default().push(gpa.0);
        }
        self.dump.read(gpa, buf)
    }

    fn ranges(&self) -> &[RamRange] {
        self.dump.ranges()
    }

    fn is_mapped(&self) -> bool {
        true
    }
}

impl Subject {
    /// Opens a dump and scans it as it is.
    ///
    /// # Errors
    /// When it is no dump, or of no guest that can be scanned.
    pub fn open(path: &Path) -> Result<Subject, Box<dyn std::error::Error>> {
        let dump = Dump::open(path)?;
        let profile = vmi::attach(&dump, &[], &Profiles::default())?
            .profile()
            .clone();
        let recorder = Recorder {
            dump: &dump,
            reads: Mutex::default(),
        };
        vmi::scan(&recorder, &ScanOptions::default())?;
        let reads = recorder.reads.into_inner()?;
        let spots = reads.into_iter().map(|(bytes, mut gpas)| {
            gpas.sort_unstable();
            gpas.dedup();
            (bytes, gpas)
        });
        let spots = spots.filter(|(bytes, _)| *bytes > 0).collect();
        let frames = dump.ranges().iter().map(|range| range.bytes / PAGE_BYTES);
        let frames = frames.sum();
        Ok(Subject {
            dump,
            profile,
            spots,
            frames,
        })
    }

    /// Scans the dump as `input` changes it. `held` tells what it may hold.
    ///
    /// # Panics
    /// When the scan does what no scan may do.
    pub fn check(&self, input: &[u8], held: &Bounded) {
        let (&mode, rest) = input.split_first().unwrap_or((&0, &[]));
        let changes = rest.chunks_exact(PATCH_BYTES).take(PATCHES_MAX);
        let patches = changes.filter_map(|change| self.patch(change)).collect();
        let memory = Patched::new(&self.dump, patches, self.frames * READS_A_FRAME_MAX);
        let given = (mode & 1 == 0).then(|| self.profile.clone());
        // A disk that is there answers with what the input says: metadata may lie as well.
        let junk = rest.to_vec();
        let read_disk = move |_: &_, at: u64, buf: &mut [u8]| {
            for (byte, at) in buf.iter_mut().zip(at as usize..) {
                *byte = junk.get(at % (junk.len() + 1)).copied().unwrap_or(0);
            }
            true
        };
        let options = ScanOptions {
            files_max: 10,
            profiles: Profiles { given, store: None },
            read_disk: (mode & 2 != 0).then(|| Box::new(read_disk) as _),
            ..ScanOptions::default()
        };
        held.restart();
        if let Ok(scan) = vmi::scan(&memory, &options) {
            self.is_sound(&scan);
        }
        let bytes_max =
            BYTES_MAX + self.frames as usize * PAGE_BYTES as usize * BYTES_A_RAM_BYTE_MAX;
        let peak = held.peak();
        assert!(peak <= bytes_max, "held {peak} bytes of {bytes_max}");
    }

    /// Pages are counted once, and the page map names RAM only.
    fn is_sound(&self, scan: &Scan) {
        let left_out: u64 = scan.reasons().values().sum();
        assert_eq!(scan.cached_pages(), scan.restorable_pages() + left_out);
        let mapped: u64 = scan.page_map.iter().map(|run| run.pages).sum();
        assert_eq!(mapped, scan.restorable_pages());
        let mut runs: Vec<(u64, u64)> = scan
            .page_map
            .iter()
            .map(|run| (run.pfn, run.pages))
            .collect();
        runs.sort_unstable();
        let apart = |pair: &[(u64, u64)]| pair[0].0 + pair[0].1 <= pair[1].0;
        assert!(runs.windows(2).all(apart), "a frame twice");
        let mut byte = [0];
        for (pfn, pages) in runs {
            let last = Gpa((pfn + pages - 1) * PAGE_BYTES);
            assert!(self.dump.read(last, &mut byte).is_ok(), "no RAM: {last}");
        }
    }

    /// A change: where, among what a scan reads, and what.
    fn patch(&self, change: &[u8]) -> Option<Patch> {
        let word = |at: usize| Some(u32::from_le_bytes(change.get(at..at + 4)?.try_into().ok()?));
        let value = u64::from_le_bytes(change.get(10..18)?.try_into().ok()?);
        let at = self.spot(change[0], word(2)?, word(6)?)?;
        let mut old = [0; 8];
        self.dump.read(Gpa(at), &mut old).ok()?;
        let old = u64::from_le_bytes(old);
        let new = match change[1] % 6 {
            0 => value,
            1 => old & !0xff | value & 0xff,
            2 => old ^ 1 << (value % 64),
            3 => old.wrapping_add_signed(value as i8 as i64),
            4 => u64::MAX * (value & 1),
            // What is elsewhere: a pointer that leads somewhere, but not there.
            _ => {
                let from = self.spot(value as u8, (value >> 8) as u32, (value >> 40) as u32)?;
                let mut other = [0; 8];
                self.dump.read(Gpa(from), &mut other).ok()?;
                u64::from_le_bytes(other)
            }
        };
        Some(Patch {
            gpa: at,
            value: new,
        })
    }

    fn spot(&self, kind: u8, number: u32, inside: u32) -> Option<u64> {
        let (bytes, gpas) = self
            .spots
            .get(usize::from(kind) % self.spots.len().max(1))?;
        let gpa = gpas.get(number as usize % gpas.len())?;
        // Numbers in structs are aligned.
        Some((gpa + u64::from(inside) % *bytes as u64) & !3)
    }
}

/// An input for a seed: always the same, with as many changes as it happens to have.
pub fn input(seed: u64) -> Vec<u8> {
    // splitmix64
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let changes = 1 + (next() % PATCHES_MAX as u64) as usize;
    // One in sixteen learns the kernel anew, which takes a hundred times as long.
    let derive = u8::from(next() % 16 == 0);
    let mode = derive | (next() as u8 & 2);
    let bytes = std::iter::repeat_with(|| next().to_le_bytes()).flatten();
    std::iter::once(mode)
        .chain(bytes.take(changes * PATCH_BYTES))
        .collect()
}
