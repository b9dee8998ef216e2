//! A file's path, from its dentries (include/linux/dcache.h). For showing only: a torn or missing
//! name is None, and nothing is decided by it.

use crate::address::Gva;
use crate::kernel::{Inode, Kernel, STRING_BYTES_MAX, Unreadable};

/// Folders above each other. PATH_MAX allows 2,000.
const DEPTH_MAX: usize = 2048;
/// PATH_MAX.
const PATH_BYTES_MAX: usize = 4096;

impl Kernel<'_> {
    /// A path of the inode within its file system, as one of its dentries has it.
    pub(crate) fn path(&self, inode: &Inode) -> Option<String> {
        // hlist_head.first and hlist_node.next are the first members of their structs.
        let alias = self
            .pointer(inode.address, self.layouts.inode.i_dentry)
            .ok()?;
        if alias.is_null() {
            return None;
        }
        let mut dentry = alias.container(self.layouts.dentry.d_u.offset);
        let mut names = Vec::new();
        let mut bytes = 0;
        for _ in 0..DEPTH_MAX {
            let parent = self.pointer(dentry, self.layouts.dentry.d_parent).ok()?;
            if parent == dentry {
                names.reverse();
                return Some(format!("/{}", names.join("/")));
            }
            let name = self.dentry_name(dentry).ok()?;
            bytes += name.len() + 1;
            if bytes > PATH_BYTES_MAX {
                return None;
            }
            names.push(name);
            dentry = parent;
        }
        None
    }

    fn dentry_name(&self, dentry: Gva) -> Result<String, Unreadable> {
        let qstr = dentry.offset(self.layouts.dentry.d_name.offset.into());
        let length = self.uint(qstr, self.layouts.qstr.len)? as usize;
        let name = self.pointer(qstr, self.layouts.qstr.name)?;
        self.space.string(name, length.min(STRING_BYTES_MAX))
    }
}
