//! The walk itself. What it holds is bounded by the guest's RAM, and so is what it looks at,
//! whatever the guest's structures say.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::address::{Gva, PAGE_BYTES, Pfn};
use crate::kernel::{Disk, Folio, Inode, Kernel, SuperBlock, Walk};
use crate::page_map::Builder;
use crate::place::Place;
use crate::reason::Reason;
use crate::scan::btrfs::TreeBlocks;
use crate::scan::claims::Claims;
use crate::scan::frames::FrameSet;
use crate::scan::volumes::SEGMENTS_MAX;
use crate::scan::{CachedFile, FilesystemCounts, GuestDisk, Scan, ScanOptions, Timings};
use crate::volume::Volume;

/// Each container brings some.
const SUPER_BLOCKS_MAX: usize = 1 << 16;
/// struct inode has more bytes than this on every kernel: bounds the inodes that RAM can hold.
const INODE_BYTES_MIN: u64 = 512;
/// One block of extent trees may be read for so many frames of RAM. A block of pointers becomes at most 1,024 extents of
/// 32 bytes: what is held of them stays below half the guest's RAM.
const FRAMES_AN_EXTENT_BLOCK: u64 = 16;
/// A struct extent_map has more bytes than this on every kernel, nodes of other kinds more yet: bounds
/// those that RAM can hold.
const EXTENT_STRUCT_BYTES_MIN: u64 = 96;
/// Walks of a list that changes under the walk.
const LIST_TRIES: usize = 3;

/// A mapping's pages so far.
#[derive(Debug, Default)]
struct Counts {
    cached: u64,
    restorable: u64,
    reasons: BTreeMap<Reason, u64>,
}

impl Counts {
    fn leave_out(&mut self, reason: Reason, pages: u64) {
        *self.reasons.entry(reason).or_default() += pages;
    }
}

pub(super) struct Scanner<'s, 'm> {
    pub(super) kernel: &'s Kernel<'m>,
    pub(super) options: &'s ScanOptions,
    pub(super) disks: Vec<Disk>,
    pub(super) guest_disks: Vec<GuestDisk>,
    pub(super) claims: Claims,
    /// By block device, or by btrfs_fs_info.
    pub(super) segments_left: usize,
    pub(super) volumes: HashMap<Gva, Result<Rc<Volume>, Reason>>,
    frames: FrameSet,
    inodes_left: usize,
    /// Nodes and folios that may still be looked at: no guest has more of either than page frames,
    /// but for sparse files, whose nodes are mostly empty.
    pub(super) nodes_left: u64,
    pub(super) folios_left: u64,
    pub(super) extent_blocks_left: u64,
    /// Nodes of XFS's extent trees, extent maps and chunks of btrfs.
    pub(super) extent_structs_left: u64,
    pub(super) tree_blocks: TreeBlocks,
    page_map: Builder,
    filesystems: Vec<FilesystemCounts>,
    files: Vec<(Inode, CachedFile)>,
    pub(super) structs_torn: u64,
}

impl<'s, 'm> Scanner<'s, 'm> {
    pub(super) fn new(kernel: &'s Kernel<'m>, options: &'s ScanOptions) -> Scanner<'s, 'm> {
        let bytes: u64 = kernel
            .space
            .mem()
            .ranges()
            .iter()
            .map(|range| range.bytes)
            .sum();
        let frames = bytes / PAGE_BYTES;
        Scanner {
            kernel,
            options,
            disks: Vec::new(),
            guest_disks: Vec::new(),
            claims: Claims::new(),
            segments_left: SEGMENTS_MAX,
            volumes: HashMap::new(),
            frames: FrameSet::new(kernel.space.mem()),
            inodes_left: (bytes / INODE_BYTES_MIN) as usize,
            nodes_left: 4 * frames,
            folios_left: 2 * frames,
            extent_blocks_left: frames / FRAMES_AN_EXTENT_BLOCK,
            extent_structs_left: bytes / EXTENT_STRUCT_BYTES_MIN,
            tree_blocks: TreeBlocks::new(),
            page_map: Builder::default(),
            filesystems: Vec::new(),
            files: Vec::new(),
            structs_torn: 0,
        }
    }

    pub(super) fn walk(&mut self) {
        let addresses = self.stable(|kernel| kernel.super_block_addresses(SUPER_BLOCKS_MAX));
        let mut super_blocks = Vec::new();
        for address in addresses {
            match self.kernel.super_block(address) {
                Ok(sb) => super_blocks.push(sb),
                Err(_) => self.structs_torn += 1,
            }
        }
        let inodes: Vec<Vec<Gva>> = super_blocks
            .iter()
            .map(|sb| {
                let inodes_max = self.inodes_left;
                let found = self.stable(|kernel| kernel.inode_addresses(sb.address, inodes_max));
                self.inodes_left -= found.len();
                found
            })
            .collect();
        self.find_disks(&super_blocks, &inodes);
        for (sb, inodes) in super_blocks.iter().zip(inodes) {
            self.filesystem(sb, &inodes);
        }
    }

    /// Walks a list again while it is torn, and takes the longest.
    fn stable(&mut self, walk: impl Fn(&Kernel<'_>) -> Walk) -> Vec<Gva> {
        let mut best = Walk {
            torn: true,
            ..Walk::default()
        };
        for attempt in 0..LIST_TRIES {
            if attempt > 0 {
                self.kernel.space.forget();
            }
            let found = walk(self.kernel);
            if !found.torn {
                return found.entries;
            }
            if found.entries.len() > best.entries.len() {
                best = found;
            }
        }
        self.structs_torn += 1;
        best.entries
    }

    fn filesystem(&mut self, sb: &SuperBlock, inodes: &[Gva]) {
        let mut sum = FilesystemCounts {
            fs: sb.fs.clone(),
            device: sb.id.clone(),
            files: 0,
            cached_pages: 0,
            restorable_pages: 0,
            reasons: BTreeMap::new(),
        };
        for &address in inodes {
            let inode = match self.kernel.inode_with_pages(address) {
                Ok(Some(inode)) if inode.is_host => inode,
                Ok(_) => continue,
                Err(_) => {
                    self.structs_torn += 1;
                    continue;
                }
            };
            let place = self.place(sb, &inode);
            let counts = self.mapping(&inode, &place);
            sum.files += 1;
            sum.cached_pages += counts.cached;
            sum.restorable_pages += counts.restorable;
            for (&reason, pages) in &counts.reasons {
                *sum.reasons.entry(reason).or_default() += pages;
            }
            self.add_file(inode, &counts);
        }
        if sum.cached_pages > 0 {
            self.filesystems.push(sum);
        }
    }

    fn add_file(&mut self, inode: Inode, counts: &Counts) {
        if self.options.files_max > 0 && inode.is_regular() {
            let file = CachedFile {
                filesystem: self.filesystems.len(),
                ino: inode.ino,
                path: None,
                size_bytes: inode.size_bytes,
                cached_pages: counts.cached,
                restorable_pages: counts.restorable,
            };
            self.files.push((inode, file));
        }
    }

    fn mapping(&mut self, inode: &Inode, place: &Result<Place, Reason>) -> Counts {
        let mut counts = Counts::default();
        let mut nodes_left = self.nodes_left;
        let kernel = self.kernel;
        let xarray = kernel.i_pages(inode.mapping);
        let walked = kernel.xa_for_each(xarray, &mut nodes_left, |index, page| {
            self.folio(inode.mapping, index, page, place, &mut counts);
        });
        self.nodes_left = nodes_left;
        if walked.is_err() {
            self.structs_torn += 1;
        }
        counts
    }

    fn folio(
        &mut self,
        mapping: Gva,
        index: u64,
        page: Gva,
        place: &Result<Place, Reason>,
        counts: &mut Counts,
    ) {
        if self.folios_left == 0 {
            return;
        }
        self.folios_left -= 1;
        let folio = self.kernel.folio(page).ok();
        let folio = folio.filter(|folio| {
            let is_its = folio.mapping == mapping && folio.index == index;
            is_its && index.is_multiple_of(folio.pages) && self.frames.claim(folio.pfn, folio.pages)
        });
        let Some(folio) = folio else {
            counts.cached += 1;
            counts.leave_out(Reason::Torn, 1);
            return;
        };
        counts.cached += folio.pages;
        let place = match (place, self.state(&folio)) {
            (Ok(place), None) => place,
            (&Err(reason), _) | (Ok(_), Some(reason)) => {
                return counts.leave_out(reason, folio.pages);
            }
        };
        for page in 0..folio.pages {
            match place.page(index + page) {
                Ok(at) => {
                    counts.restorable += 1;
                    self.page_map
                        .push(at.disk, at.offset, Pfn(folio.pfn.0 + page));
                }
                Err(reason) => counts.leave_out(reason, 1),
            }
        }
    }

    /// What keeps a folio in this state from being what its disk blocks are.
    fn state(&self, folio: &Folio) -> Option<Reason> {
        let flags = &self.kernel.layouts.page_flags;
        let is = |flag: u64| folio.flags & flag != 0;
        [
            (is(flags.hwpoison), Reason::Hwpoison),
            (!is(flags.uptodate), Reason::NotUptodate),
            (is(flags.error), Reason::PageError),
            (is(flags.dirty), Reason::Dirty),
            (is(flags.writeback), Reason::Writeback),
            // Written to before it is made dirty; and clean, but not under writeback yet, while it
            // is being submitted.
            (is(flags.locked), Reason::Locked),
        ]
        .into_iter()
        .find_map(|(holds, reason)| holds.then_some(reason))
    }

    pub(super) fn finish(mut self) -> Scan {
        self.files
            .sort_by_key(|(_, file)| std::cmp::Reverse(file.cached_pages));
        self.files.truncate(self.options.files_max);
        let files = self.files.into_iter().map(|(inode, file)| CachedFile {
            path: self.kernel.path(&inode),
            ..file
        });
        Scan {
            kernel: self.kernel.info.clone(),
            profile_origin: self.kernel.origin,
            profile_problem: self.kernel.profile_problem.clone(),
            disks: self.guest_disks,
            filesystems: self.filesystems,
            files: files.collect(),
            page_map: self.page_map.finish(),
            structs_torn: self.structs_torn,
            timings: Timings::default(),
        }
    }
}
