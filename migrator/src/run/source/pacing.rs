//! Holding QEMU back, so that it does not stop the guest before the plan is settled: the end of its first pass stays
//! unread, and its switchover ack is kept. Afterwards QEMU learns how fast the network really is.

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use vmi::LiveMemory;

use super::{READ_BYTES, Transfer};
use crate::core::ram::{PAGE_BYTES, RamPage, RamTable};
use crate::run::qemu;

/// QEMU's own buffer in front of its socket (migration/qemu-file.c, IO_BUF_SIZE).
const QEMU_FILE_BYTES: usize = 32 << 10;
/// All that lies between QEMU's page loop and our parser; the kernel may double the socket's size.
const SWALLOWED_BYTES: usize = 2 * qemu::SOURCE_SOCKET_BYTES + READ_BYTES + QEMU_FILE_BYTES;
/// Bytes that a page takes in the stream, if it is zero and if it is not.
const ZERO_PAGE_BYTES: usize = 9;
const CONTENT_PAGE_BYTES: usize = 8 + PAGE_BYTES;
/// The guest may zero pages between our look at them and QEMU's: so many times as much as is swallowed stays unread.
const MARGIN: usize = 4;
/// With so many pages unread it does not matter what is in them.
const RESERVE_PAGES_MAX: u32 = SWALLOWED_BYTES.div_ceil(ZERO_PAGE_BYTES) as u32;
/// Pages looked at in one go.
pub(in crate::run) const LOOK_PAGES: u32 = 256;

/// Guest pages that must stay unread while QEMU is held back: as many of the last ones as fill everything between its
/// page loop and our parser. Fewer, and QEMU runs out of pages, stops the guest and waits for us with the
/// guest stopped. More, and their content is sent later than it could be. QEMU's first pass takes the pages in order.
pub(super) fn reserve(memory: &dyn LiveMemory, table: &RamTable) -> u32 {
    let pages_max = RESERVE_PAGES_MAX.min(table.pages() / 2);
    let chunks = (0..pages_max.div_ceil(LOOK_PAGES)).map(|chunk| {
        let end = table.pages() - chunk * LOOK_PAGES;
        let start = end.saturating_sub(LOOK_PAGES);
        let bytes = read(memory, table, (start..end).map(RamPage));
        let pages = bytes.chunks_exact(PAGE_BYTES).rev();
        let are_zero = pages.map(|page| page.iter().all(|byte| *byte == 0));
        are_zero.collect::<Vec<bool>>()
    });
    last_pages(chunks.flatten(), pages_max)
}

/// The pages' bytes; what cannot be read counts as zero.
pub(in crate::run) fn read(
    memory: &dyn LiveMemory,
    table: &RamTable,
    pages: impl Iterator<Item = RamPage>,
) -> Vec<u8> {
    let places: Vec<(usize, u64)> = pages.map(|page| table.locate(page)).collect();
    let mut bytes = vec![0; places.len() * PAGE_BYTES];
    // ROMs that the guest does not see have no address: one by one they cost the others nothing.
    if memory.read_block_pages(&places, &mut bytes).is_err() {
        for ((block, offset), page) in places.iter().zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
            if memory.read_block(*block, *offset, page).is_err() {
                page.fill(0);
            }
        }
    }
    bytes
}

/// How many of the pages, told from the last on whether they are zero, it takes; at most `pages_max`.
fn last_pages(are_zero: impl Iterator<Item = bool>, pages_max: u32) -> u32 {
    let mut bytes = 0;
    for (pages, is_zero) in (1..pages_max).zip(are_zero) {
        bytes += if is_zero {
            ZERO_PAGE_BYTES
        } else {
            CONTENT_PAGE_BYTES
        };
        if bytes >= MARGIN * SWALLOWED_BYTES {
            return pages;
        }
    }
    pages_max
}

impl Transfer<'_> {
    /// Pacing: while a page of the plan is open, the end of the first pass stays unread.
    pub(super) fn may_parse(&self) -> bool {
        self.buffer.ripe && (!self.held || self.dispatcher.unseen() > self.reserve)
    }

    /// Lets go of QEMU, and tells what its downtime is governed by, once it is time for either.
    pub(super) async fn let_go(&mut self) -> anyhow::Result<()> {
        if self.held && self.dispatcher.open() == 0 && self.is_transferring() {
            self.release().await?;
        }
        if !self.pace.let_go.get() && self.may_be_let_go() {
            self.tell_rate();
            self.pace.let_go.set(true);
            self.pace.woken.notify_one();
        }
        Ok(())
    }

    /// Tells the governor what the network carries.
    pub(super) fn tell_rate(&self) {
        let rate = self.lan_out.network_use().rate();
        self.pace.lan_bytes_per_s.set(rate);
    }

    /// Nothing of the plan is open any more: QEMU may come to its end.
    async fn release(&mut self) -> anyhow::Result<()> {
        self.held = false;
        let mut acks = Vec::new();
        self.gate.release(&mut acks);
        self.qemu_out
            .write_all(&acks)
            .await
            .context("QEMU closed its return path")
    }

    /// Whether what is left of the first pass can be carried within the downtime that the operator allows. Before
    /// that, a burst of digests would make QEMU believe in a fast network and stop the guest with too much left.
    fn may_be_let_go(&self) -> bool {
        let left = f64::from(self.dispatcher.unseen()) * PAGE_BYTES as f64;
        let limit_s = self.guest.downtime_limit_ms as f64 / 1e3;
        !self.held && left <= self.lan_out.network_use().rate() * limit_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_pages_stay_unread_as_fill_the_way() {
        let zero = |pages| std::iter::repeat_n(true, pages);
        let content = std::iter::repeat(false);
        let full = (MARGIN * SWALLOWED_BYTES).div_ceil(CONTENT_PAGE_BYTES) as u32;
        assert_eq!(last_pages(content.clone(), RESERVE_PAGES_MAX), full);
        // Zero pages before them (video RAM) fill little.
        let after = last_pages(zero(4096).chain(content.clone()), RESERVE_PAGES_MAX);
        assert!((4096 + full - 10..4096 + full).contains(&after), "{after}");
        assert_eq!(
            last_pages(zero(1 << 20), RESERVE_PAGES_MAX),
            RESERVE_PAGES_MAX
        );
        // A small guest is not held back from its first page on.
        assert_eq!(last_pages(content, 100), 100);
        assert_eq!(last_pages(zero(3), 2), 2);
    }
}
