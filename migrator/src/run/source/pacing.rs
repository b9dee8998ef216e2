//! Holding QEMU back, so that it does not stop the guest before the plan is settled: the end of its first pass stays
//! unread, and its switchover ack is kept. Afterwards QEMU learns how fast the network really is.

use anyhow::Context;
use tokio::io::AsyncWriteExt;

use super::{READ_BYTES, Transfer};
use crate::core::ram::PAGE_BYTES;
use crate::run::qemu;

/// QEMU's own buffer in front of its socket (migration/qemu-file.c, IO_BUF_SIZE).
const QEMU_FILE_BYTES: usize = 32 << 10;
/// Bytes that a zero page takes in the stream; the kernel may double the socket's size.
const ZERO_PAGE_BYTES: usize = 9;
/// Guest pages that must stay unread while QEMU is held back: as many as everything between its
/// page loop and our parser can swallow if all are zero. Fewer, and QEMU runs out of pages, stops the
/// guest and waits for us with the guest stopped. More, and their content is sent later than it could be.
pub(super) const RESERVE_PAGES: u32 =
    ((2 * qemu::SOURCE_SOCKET_BYTES + READ_BYTES + QEMU_FILE_BYTES) / ZERO_PAGE_BYTES) as u32;

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
