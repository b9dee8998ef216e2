//! Red-black trees (include/linux/rbtree.h), walked in order within a budget.

use profiles::Field;

use crate::address::Gva;
use crate::kernel::{Kernel, Unreadable};

/// A tree of n nodes is no deeper than 2·log2(n + 1).
const DEPTH_MAX: usize = 128;

impl Kernel<'_> {
    /// The structs linked by `member` into the tree whose struct rb_root (or rb_root_cached, which
    /// begins with one) is at `root`, in the tree's order. Each costs one of `budget`.
    pub(crate) fn rb_entries(
        &self,
        root: Gva,
        member: Field,
        budget: &mut u64,
    ) -> Result<Vec<Gva>, Unreadable> {
        let layout = self.layouts.rb_node;
        let mut entries = Vec::new();
        // Nodes whose left side is being walked.
        let mut above = Vec::new();
        let mut next = self.pointer(root, self.layouts.rb_root.rb_node)?;
        loop {
            while !next.is_null() {
                *budget = budget.checked_sub(1).ok_or(Unreadable(next))?;
                if above.len() == DEPTH_MAX {
                    return Err(Unreadable(next));
                }
                above.push(next);
                next = self.pointer(next, layout.rb_left)?;
            }
            let Some(node) = above.pop() else {
                return Ok(entries);
            };
            entries.push(node.container(member.offset));
            next = self.pointer(node, layout.rb_right)?;
        }
    }
}
