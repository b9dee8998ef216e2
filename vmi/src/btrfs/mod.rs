//! btrfs: a file's extents are bytes of the file system's logical address space, and chunks say
//! where on its devices those are. Pure: blocks of trees come through a closure.
//!
//! The extent maps in memory are asked first: where one covers a page it is right, also while
//! data that was just written is not yet in the tree (it is pinned until then). Where none does it
//! was never made, or the kernel's shrinker took it, and the subvolume's tree is right.

pub(crate) mod chunk;
pub(crate) mod extent_map;
pub(crate) mod fs_tree;
