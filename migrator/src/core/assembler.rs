//! The destination's core: decides for every page which bytes its QEMU gets, and when all is settled.
//!
//! Nothing but the latest emission settles a page. Provisional bytes (from storage, or sent ahead by the
//! source) reach QEMU only if the page has no emission yet or their digest is the latest claim's.

use super::digest::{Digest, DigestKey, Digests};
use super::plan::Bitmap;
use super::ram::{PAGE_BYTES, RamPage};
use super::wire::{Outcome, Record};

/// What is known of a page. The digest beside it means what the variant says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Never emitted, nothing written.
    Untouched,
    /// Never emitted; provisional bytes with this digest are in QEMU.
    Early,
    /// Emitted as a claim of this digest that is not met yet.
    Claimed,
    /// The claim no longer holds and QEMU will emit the page again.
    Stale,
    /// The bytes in QEMU are those of the latest emission.
    Settled,
}

/// What to do with bytes or with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The bytes go into QEMU.
    pub write: bool,
    /// The source has to know.
    pub report: Option<Outcome>,
}

/// Pages by where their final bytes came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Claims met by bytes from storage or sent ahead.
    pub met: u64,
    /// Claims that could not be met.
    pub needed: u64,
}

/// The destination's page states: a byte a page, and 16 for each that has a digest.
#[derive(Debug)]
pub struct Assembler {
    key: DigestKey,
    state: Vec<State>,
    digests: Digests,
    /// Pages that storage has yet to answer for: planned or being read.
    pending: Bitmap,
    /// Pages that are [`State::Claimed`] or [`State::Stale`].
    unsettled: u32,
    /// Pages that are [`State::Stale`].
    stale: u32,
    counts: Counts,
}

impl Assembler {
    /// An assembler for a guest of `pages` pages.
    pub fn new(pages: u32, key: DigestKey) -> Assembler {
        Assembler {
            key,
            state: vec![State::Untouched; pages as usize],
            digests: Digests::new(pages),
            pending: Bitmap::new(pages),
            unsettled: 0,
            stale: 0,
            counts: Counts::default(),
        }
    }

    /// Storage will answer for `page`, with bytes or with a failure.
    pub fn expect_from_storage(&mut self, page: RamPage) {
        self.pending.insert(page);
    }

    /// Whether bytes from storage could still serve `page`.
    pub fn wants_from_storage(&self, page: RamPage) -> bool {
        self.pending.contains(page)
            && matches!(self.state[page.index()], State::Untouched | State::Claimed)
    }

    /// Whether every emitted page is settled.
    pub fn is_settled(&self) -> bool {
        self.unsettled == 0
    }

    /// Whether a page waits for QEMU to emit it again. After the last emission none may.
    pub fn has_stale(&self) -> bool {
        self.stale > 0
    }

    /// Pages that wait for bytes.
    pub fn unsettled(&self) -> u32 {
        self.unsettled
    }

    /// Claims so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes one record from the source, in the order in which the source sent it.
    pub fn record(&mut self, record: &Record<'_>) -> Verdict {
        match record {
            Record::Zero(page, count) => {
                for page in page.0..page.0 + u32::from(*count) {
                    self.settle(RamPage(page));
                }
                Verdict {
                    write: true,
                    report: None,
                }
            }
            Record::Content(page, _) => {
                self.settle(*page);
                Verdict {
                    write: true,
                    report: None,
                }
            }
            Record::Claim(page, digest) => self.claim(*page, *digest),
            Record::Early(page, bytes) => self.early(*page, bytes),
            Record::Dirtied(page) => {
                if self.state[page.index()] == State::Claimed {
                    self.state[page.index()] = State::Stale;
                    self.stale += 1;
                }
                Verdict::default()
            }
        }
    }

    /// Takes a page's bytes as storage holds them.
    pub fn from_storage(&mut self, page: RamPage, bytes: &[u8; PAGE_BYTES]) -> Verdict {
        self.pending.remove(page);
        match self.state[page.index()] {
            State::Untouched => {
                let digest = self.key.digest(bytes);
                self.set(page, State::Early, digest);
                Verdict {
                    write: true,
                    report: Some(Outcome::Have(digest)),
                }
            }
            State::Claimed if self.key.digest(bytes) == self.digests.get(page) => self.meet(page),
            State::Claimed => self.need(),
            State::Early | State::Stale | State::Settled => Verdict::default(),
        }
    }

    /// Storage will not answer for `page`: an error, a stall, or it was left out.
    pub fn storage_failed(&mut self, page: RamPage) -> Verdict {
        if !self.pending.remove(page) {
            return Verdict::default();
        }
        match self.state[page.index()] {
            State::Untouched => Verdict {
                write: false,
                report: Some(Outcome::Lost),
            },
            State::Claimed => self.need(),
            State::Early | State::Stale | State::Settled => Verdict::default(),
        }
    }

    fn claim(&mut self, page: RamPage, digest: Digest) -> Verdict {
        let at = page.index();
        if self.state[at] == State::Early && self.digests.get(page) == digest {
            self.state[at] = State::Claimed;
            self.unsettled += 1;
            let Verdict { report, .. } = self.meet(page);
            return Verdict {
                write: false,
                report,
            };
        }
        self.settle_accounts(page);
        self.unsettled += 1;
        let was_early = self.state[at] == State::Early;
        self.set(page, State::Claimed, digest);
        if self.pending.contains(page) && !was_early {
            Verdict::default()
        } else {
            self.need()
        }
    }

    /// Bytes that the source sent ahead of any emission.
    fn early(&mut self, page: RamPage, bytes: &[u8; PAGE_BYTES]) -> Verdict {
        match self.state[page.index()] {
            State::Untouched | State::Early => {
                let digest = self.key.digest(bytes);
                self.set(page, State::Early, digest);
                Verdict {
                    write: true,
                    report: None,
                }
            }
            State::Claimed if self.key.digest(bytes) == self.digests.get(page) => self.meet(page),
            State::Claimed | State::Stale | State::Settled => Verdict::default(),
        }
    }

    fn meet(&mut self, page: RamPage) -> Verdict {
        self.settle(page);
        self.counts.met += 1;
        Verdict {
            write: true,
            report: Some(Outcome::Met),
        }
    }

    fn need(&mut self) -> Verdict {
        self.counts.needed += 1;
        Verdict {
            write: false,
            report: Some(Outcome::Need),
        }
    }

    fn settle(&mut self, page: RamPage) {
        self.settle_accounts(page);
        self.state[page.index()] = State::Settled;
    }

    /// Takes `page` out of the counters that its state is in.
    fn settle_accounts(&mut self, page: RamPage) {
        let state = self.state[page.index()];
        self.unsettled -= u32::from(matches!(state, State::Claimed | State::Stale));
        self.stale -= u32::from(state == State::Stale);
    }

    fn set(&mut self, page: RamPage, state: State, digest: Digest) {
        self.state[page.index()] = state;
        self.digests.set(page, digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: RamPage = RamPage(3);
    const A: &[u8; PAGE_BYTES] = &[1; PAGE_BYTES];
    const B: &[u8; PAGE_BYTES] = &[2; PAGE_BYTES];

    fn key() -> DigestKey {
        DigestKey::from([7; 32])
    }

    fn claim(bytes: &[u8; PAGE_BYTES]) -> Record<'static> {
        Record::Claim(P, key().digest(bytes))
    }

    fn planned() -> Assembler {
        let mut assembler = Assembler::new(8, key());
        assembler.expect_from_storage(P);
        assembler
    }

    const MET: Verdict = Verdict {
        write: true,
        report: Some(Outcome::Met),
    };
    const NEED: Verdict = Verdict {
        write: false,
        report: Some(Outcome::Need),
    };
    const NOTHING: Verdict = Verdict {
        write: false,
        report: None,
    };

    #[test]
    fn storage_before_the_claim_settles_without_a_second_write() {
        let mut assembler = planned();
        let have = Some(Outcome::Have(key().digest(A)));
        assert_eq!(
            assembler.from_storage(P, A),
            Verdict {
                write: true,
                report: have
            }
        );
        let met = Verdict {
            write: false,
            ..MET
        };
        assert_eq!(assembler.record(&claim(A)), met);
        assert!(assembler.is_settled());
    }

    #[test]
    fn storage_after_the_claim_is_written_only_if_it_is_what_was_claimed() {
        let mut assembler = planned();
        assert_eq!(assembler.record(&claim(A)), NOTHING);
        assert!(!assembler.is_settled());
        assert_eq!(assembler.from_storage(P, A), MET);
        assert!(assembler.is_settled());

        let mut assembler = planned();
        assembler.record(&claim(A));
        assert_eq!(assembler.from_storage(P, B), NEED);
        assert!(!assembler.is_settled());
        assert!(assembler.record(&Record::Content(P, A)).write);
        assert!(assembler.is_settled());
    }

    #[test]
    fn wrong_early_bytes_need_the_page_and_stay_unsettled_until_it_comes() {
        let mut assembler = planned();
        assembler.from_storage(P, B);
        assert_eq!(assembler.record(&claim(A)), NEED);
        assert!(!assembler.is_settled());
        assert_eq!(assembler.record(&Record::Dirtied(P)), NOTHING);
        assert!(!assembler.is_settled());
        // Bytes that meet a claim which no longer holds are not the page's content.
        assert_eq!(assembler.record(&Record::Early(P, A)), NOTHING);
        assert!(!assembler.is_settled());
        assert!(assembler.record(&Record::Zero(P, 1)).write);
        assert!(assembler.is_settled());
    }

    #[test]
    fn nothing_provisional_touches_a_settled_page() {
        let mut assembler = planned();
        assembler.record(&Record::Content(P, A));
        assert!(!assembler.wants_from_storage(P));
        assert_eq!(assembler.from_storage(P, B), NOTHING);
        assert_eq!(assembler.record(&Record::Early(P, B)), NOTHING);
        assert_eq!(assembler.storage_failed(P), NOTHING);
    }

    #[test]
    fn a_failed_read_is_lost_before_the_claim_and_needed_after() {
        let mut assembler = planned();
        let lost = Verdict {
            write: false,
            report: Some(Outcome::Lost),
        };
        assert_eq!(assembler.storage_failed(P), lost);
        assert_eq!(assembler.record(&claim(A)), NEED);
        let mut assembler = planned();
        assembler.record(&claim(A));
        assert_eq!(assembler.storage_failed(P), NEED);
        assert_eq!(assembler.storage_failed(P), NOTHING);
    }
}
