//! struct list_head (include/linux/list.h), walked within a budget. The guest may be changing the
//! list: an end that is not the head is reported with what was found until then.

use profiles::Field;

use crate::address::Gva;
use crate::kernel::Kernel;

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Addresses of the structs that the list links.
    pub(crate) entries: Vec<Gva>,
    /// The walk ended somewhere else than at the head it began with.
    pub(crate) torn: bool,
}

impl Kernel<'_> {
    /// The structs linked by `member` into the list at `head`, at most `entries_max`
    /// (list_for_each_entry).
    pub(crate) fn list_entries(&self, head: Gva, member: Field, entries_max: usize) -> Walk {
        let list_head = self.layouts.list_head;
        let mut walk = Walk::default();
        let mut previous = head;
        while let Ok(at) = self.pointer(previous, list_head.next) {
            // A link that does not lead back was changed while it was read, or is no link.
            if self.pointer(at, list_head.prev) != Ok(previous) {
                break;
            }
            if at == head {
                return walk;
            }
            if walk.entries.len() == entries_max {
                break;
            }
            walk.entries.push(at.container(member.offset));
            previous = at;
        }
        walk.torn = true;
        walk
    }
}
