//! Locks, as far as they say that someone is changing what they guard. A guest may be stopped in the
//! middle of a change: what a writer holds is half old and half new, and fits together all the same.
//! Never takes a lock.

use profiles::Field;

use crate::address::Gva;
use crate::kernel::{Kernel, Unreadable};

/// RWSEM_WRITER_LOCKED of rw_semaphore.count (kernel/locking/rwsem.c).
const RWSEM_WRITER_LOCKED: u64 = 1;
/// _QW_LOCKED, in the byte qrwlock.wlocked (include/asm-generic/qrwlock.h).
const QW_LOCKED: u64 = 0xff;

impl Kernel<'_> {
    /// Whether a writer holds the struct rw_semaphore at `lock`; false where the kernel does not tell.
    pub(crate) fn rwsem_is_write_locked(&self, lock: Gva) -> Result<bool, Unreadable> {
        let count = self.lock_word(lock, self.layouts.locks.rw_semaphore_count)?;
        Ok(count & RWSEM_WRITER_LOCKED != 0)
    }

    /// Whether a writer holds the rwlock_t at `lock`; false where the kernel does not tell.
    pub(crate) fn rwlock_is_write_locked(&self, lock: Gva) -> Result<bool, Unreadable> {
        let wlocked = self.lock_word(lock, self.layouts.locks.qrwlock_wlocked)?;
        Ok(wlocked == QW_LOCKED)
    }

    fn lock_word(&self, lock: Gva, field: Option<Field>) -> Result<u64, Unreadable> {
        field.map_or(Ok(0), |field| self.uint(lock, field))
    }
}
