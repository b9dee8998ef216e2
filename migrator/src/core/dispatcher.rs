//! The source's core: decides for every emission of QEMU's what the destination is told, which pages are
//! stolen from the plan, and how long QEMU must not be let to its end.
//!
//! A page of the plan is *open* until both hosts know who supplies its bytes. While one is open, the
//! stream is not read to the end of its first pass (pacing, `run::source::pacing`), so that QEMU cannot stop the guest.

use super::digest::{Digest, DigestKey, Digests};
use super::plan::{Bitmap, Plan};
use super::ram::{PAGE_BYTES, RamPage};
use super::wire::{Outcome, Record};

/// What is known of a page. The digest beside it means what the variant says; beside `Plain` it means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Only the LAN carries it.
    Plain,
    /// In the plan, not emitted, and nobody has its bytes yet. Open.
    Planned,
    /// Not emitted; the destination has bytes of this digest.
    Early,
    /// The same, for a page that only the LAN carries.
    Ahead,
    /// Emitted as a claim of this digest, not answered yet. Open.
    Claimed,
    /// The destination lacks what was claimed, and will be answered. Open.
    Needed,
    /// The last emission has this digest and the destination has it.
    Met,
    /// The last emission has this digest and went with its content, which settles it: what the destination said before it
    /// had that is no news.
    Sent,
}

/// How an emission is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// With its content.
    Content,
    /// With its digest only.
    Claim(Digest),
    /// Not at all: the destination has exactly this.
    Nothing,
}

/// Pages by how they were told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Emissions sent with content.
    pub content: u64,
    /// Emissions of the plan's pages sent as a claim.
    pub claimed: u64,
    /// Emissions of zero pages.
    pub zero: u64,
    /// Pages that only the LAN can carry, sent before QEMU emitted them.
    pub ahead: u64,
    /// Of these, the ones that the guest wrote to before QEMU emitted them.
    pub ahead_in_vain: u64,
    /// Pages of the plan, sent instead of storage.
    pub stolen: u64,
    /// Pages that the destination asked for.
    pub needed: u64,
    /// Emissions that repeated what the destination has.
    pub unchanged: u64,
}

/// Pages looked at in one go, most of which may be the plan's or QEMU's.
const LOOKED_AT_MAX: usize = 4096;

/// The source's page states: a byte a page, and 16 for each that has a digest.
#[derive(Debug)]
pub struct Dispatcher {
    key: DigestKey,
    plan: Plan,
    state: Vec<State>,
    digests: Digests,
    seen: Bitmap,
    /// Pages that QEMU has not emitted yet.
    unseen: u32,
    /// Pages that are [`State::Planned`], [`State::Claimed`] or [`State::Needed`].
    open: u32,
    /// Positions from here on are stolen.
    back: u32,
    /// Pages before this one were looked at to be sent ahead, or are QEMU's.
    ahead: u32,
    may_steal: bool,
    /// Section "ram" has begun: before that the destination has nowhere to put a page.
    started: bool,
    counts: Counts,
}

impl Dispatcher {
    /// A dispatcher for a guest of `pages` pages. Without `may_steal` storage alone serves the plan.
    pub fn new(pages: u32, plan: Plan, key: DigestKey, may_steal: bool) -> Dispatcher {
        let mut state = vec![State::Plain; pages as usize];
        for run in plan.runs() {
            state[run.page.index()..run.page.index() + run.pages as usize].fill(State::Planned);
        }
        Dispatcher {
            key,
            state,
            digests: Digests::new(pages),
            seen: Bitmap::new(pages),
            unseen: pages,
            open: plan.pages(),
            back: plan.pages(),
            ahead: 0,
            may_steal,
            started: false,
            counts: Counts::default(),
            plan,
        }
    }

    /// The destination can be given pages from here on; whether that is news.
    pub fn start(&mut self) -> bool {
        !std::mem::replace(&mut self.started, true)
    }

    /// Pages of the first pass that QEMU has not emitted yet.
    pub fn unseen(&self) -> u32 {
        self.unseen
    }

    /// Pages of the plan for which it is not settled who supplies them.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Pages so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// QEMU emitted `page` as all zero.
    pub fn emit_zero(&mut self, page: RamPage) {
        self.see(page);
        let was_ahead = self.state[page.index()] == State::Ahead;
        self.counts.ahead_in_vain += u64::from(was_ahead);
        self.set_state(page, State::Plain);
        self.counts.zero += 1;
    }

    /// QEMU emitted `page` with `content`: how to tell it.
    pub fn emit(&mut self, page: RamPage, content: &[u8; PAGE_BYTES]) -> Telling {
        self.see(page);
        let state = self.state[page.index()];
        let digest = self.key.digest(content);
        let same = digest == self.digests.get(page);
        match state {
            State::Planned => self.claim(page, State::Claimed, digest),
            // The destination has these bytes, so the claim is met as soon as it arrives.
            State::Early if same => self.claim(page, State::Met, digest),
            State::Ahead if same => {
                self.set(page, State::Met, digest);
                Telling::Claim(digest)
            }
            // A page that was dirtied and holds what it held.
            State::Claimed | State::Needed | State::Met | State::Sent if same => {
                self.counts.unchanged += 1;
                Telling::Nothing
            }
            State::Plain
            | State::Early
            | State::Ahead
            | State::Claimed
            | State::Needed
            | State::Met
            | State::Sent => {
                self.counts.ahead_in_vain += u64::from(state == State::Ahead);
                self.set(page, State::Sent, digest);
                self.counts.content += 1;
                Telling::Content
            }
        }
    }

    /// The destination reported what became of `page`. Whether the page must now be read and
    /// [answered](Dispatcher::answer).
    pub fn report(&mut self, page: RamPage, outcome: Outcome) -> bool {
        let state = self.state[page.index()];
        match (outcome, state) {
            (Outcome::Have(digest), State::Planned) => self.set(page, State::Early, digest),
            (Outcome::Lost, State::Planned) => self.set_state(page, State::Plain),
            (Outcome::Met, State::Claimed) => self.set_state(page, State::Met),
            (Outcome::Need, State::Claimed | State::Met) => {
                self.set_state(page, State::Needed);
                return true;
            }
            // The page was emitted or stolen while the report was under way, which settled it, or it is being answered.
            _ => {}
        }
        false
    }

    /// What to tell of a page that the destination needs, whose bytes in guest RAM now are `bytes`.
    /// Nothing when it was emitted again in the meantime.
    pub fn answer<'a>(&mut self, page: RamPage, bytes: &'a [u8; PAGE_BYTES]) -> Option<Record<'a>> {
        let record = self.fulfil(page, bytes);
        self.counts.needed += u64::from(record.is_some());
        record
    }

    /// The page's RAM cannot be read, so nobody but QEMU can supply it. Whether that is too late: it was
    /// claimed, and QEMU will not emit it again unless the guest writes to it.
    pub fn unreadable(&mut self, page: RamPage) -> bool {
        match self.state[page.index()] {
            State::Planned => {
                self.set_state(page, State::Plain);
                false
            }
            State::Claimed | State::Needed | State::Met => true,
            State::Plain | State::Ahead | State::Early | State::Sent => false,
        }
    }

    /// Whether there may be a page to send ahead.
    pub fn can_go_ahead(&self) -> bool {
        self.may_steal && self.started && self.unseen > 0 && self.ahead < self.ram_pages()
    }

    /// The next pages, up to `pages`, that storage cannot supply and QEMU has not emitted yet, in the order in
    /// which it will: what is sent ahead of it should be dirtied seldom in between. There may be more where none were found.
    pub fn look_ahead(&mut self, pages: usize, into: &mut Vec<RamPage>) {
        for _ in 0..LOOKED_AT_MAX {
            if !self.can_go_ahead() || into.len() >= pages {
                return;
            }
            let page = RamPage(self.ahead);
            self.ahead += 1;
            if self.state[page.index()] == State::Plain && !self.seen.contains(page) {
                into.push(page);
            }
        }
    }

    /// What to tell of a page that was looked ahead to, whose bytes in guest RAM now are `bytes`: nothing where they are
    /// zero, which costs QEMU's stream a few bytes.
    pub fn ahead<'a>(&mut self, page: RamPage, bytes: &'a [u8; PAGE_BYTES]) -> Option<Record<'a>> {
        let is_due = self.state[page.index()] == State::Plain && !self.seen.contains(page);
        if !is_due || bytes == &[0; PAGE_BYTES] {
            return None;
        }
        self.set(page, State::Ahead, self.key.digest(bytes));
        self.counts.ahead += 1;
        Some(Record::Early(page, bytes))
    }

    /// Whether there is a page to steal.
    pub fn can_steal(&self) -> bool {
        self.may_steal && self.started && self.open > 0 && self.back > 0
    }

    /// Takes up to `pages` open pages from the far end of the plan. Those that the destination is reading
    /// come last, and for them the LAN is a second supplier: that ends a stall. Returns the position
    /// from which on the plan is now stolen.
    pub fn steal(&mut self, pages: usize, into: &mut Vec<RamPage>) -> u32 {
        while self.can_steal() && into.len() < pages {
            self.back -= 1;
            let (page, _, _) = self.plan.at(self.back);
            if matches!(self.state[page.index()], State::Planned | State::Claimed) {
                into.push(page);
            }
        }
        self.back
    }

    /// What to tell of a stolen page, whose bytes in guest RAM now are `bytes`.
    pub fn stolen<'a>(&mut self, page: RamPage, bytes: &'a [u8; PAGE_BYTES]) -> Option<Record<'a>> {
        let record = if self.state[page.index()] == State::Planned {
            self.set(page, State::Early, self.key.digest(bytes));
            Some(Record::Early(page, bytes))
        } else {
            self.fulfil(page, bytes)
        };
        self.counts.stolen += u64::from(record.is_some());
        record
    }

    /// The content of a claimed page, if guest RAM still holds what was claimed. If not, the guest has written
    /// to it since the emission, so QEMU will emit it again.
    fn fulfil<'a>(&mut self, page: RamPage, bytes: &'a [u8; PAGE_BYTES]) -> Option<Record<'a>> {
        if !matches!(self.state[page.index()], State::Claimed | State::Needed) {
            return None;
        }
        let claimed = self.digests.get(page);
        if self.key.digest(bytes) == claimed {
            self.set_state(page, State::Sent);
            return Some(Record::Content(page, bytes));
        }
        self.set_state(page, State::Plain);
        Some(Record::Dirtied(page))
    }

    fn claim(&mut self, page: RamPage, state: State, digest: Digest) -> Telling {
        self.set(page, state, digest);
        self.counts.claimed += 1;
        Telling::Claim(digest)
    }

    fn ram_pages(&self) -> u32 {
        self.state.len() as u32
    }

    fn see(&mut self, page: RamPage) {
        if self.seen.insert(page) {
            self.unseen = self.unseen.saturating_sub(1);
        }
    }

    fn set(&mut self, page: RamPage, state: State, digest: Digest) {
        self.set_state(page, state);
        self.digests.set(page, digest);
    }

    fn set_state(&mut self, page: RamPage, state: State) {
        let open = |state| {
            let is_open = matches!(state, State::Planned | State::Claimed | State::Needed);
            u32::from(is_open)
        };
        let was = std::mem::replace(&mut self.state[page.index()], state);
        self.open = self.open - open(was) + open(state);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlanRun;
    use super::*;

    const P: RamPage = RamPage(2);
    const A: &[u8; PAGE_BYTES] = &[1; PAGE_BYTES];
    const B: &[u8; PAGE_BYTES] = &[2; PAGE_BYTES];

    fn digest(bytes: &[u8; PAGE_BYTES]) -> Digest {
        DigestKey::from([7; 32]).digest(bytes)
    }

    /// Page 2 and page 3 of four are in the plan.
    fn planned() -> Dispatcher {
        let run = PlanRun {
            page: P,
            pages: 2,
            disk: 0,
            offset: 0,
        };
        let plan = Plan::new(vec![run], 4, &[1 << 20]).unwrap();
        let mut dispatcher = Dispatcher::new(4, plan, DigestKey::from([7; 32]), true);
        assert!(!dispatcher.can_steal() && dispatcher.start() && !dispatcher.start());
        dispatcher
    }

    #[test]
    fn what_the_destination_is_known_to_have_is_claimed_and_what_it_lacks_is_sent() {
        let mut dispatcher = planned();
        dispatcher.report(P, Outcome::Have(digest(A)));
        assert_eq!(dispatcher.open(), 1);
        assert_eq!(dispatcher.emit(P, A), Telling::Claim(digest(A)));
        assert_eq!(dispatcher.emit(P, A), Telling::Nothing);
        assert_eq!(dispatcher.emit(P, B), Telling::Content);
        assert_eq!(dispatcher.emit(P, B), Telling::Nothing);
        assert_eq!(dispatcher.emit(P, A), Telling::Content);
        assert_eq!(dispatcher.counts().unchanged, 2);

        let mut dispatcher = planned();
        dispatcher.report(P, Outcome::Have(digest(B)));
        // A claim that cannot be met would cost a round trip.
        assert_eq!(dispatcher.emit(P, A), Telling::Content);
        assert_eq!(dispatcher.emit(RamPage(0), A), Telling::Content);
    }

    #[test]
    fn a_need_is_answered_with_what_was_claimed_or_not_at_all() {
        let mut dispatcher = planned();
        assert_eq!(dispatcher.emit(P, A), Telling::Claim(digest(A)));
        assert_eq!(dispatcher.open(), 2);
        assert!(dispatcher.report(P, Outcome::Need));
        // Once asked for, it is answered once.
        assert!(!dispatcher.report(P, Outcome::Need));
        assert_eq!(dispatcher.emit(P, A), Telling::Nothing);
        assert_eq!(dispatcher.answer(P, B), Some(Record::Dirtied(P)));
        assert_eq!(dispatcher.answer(P, A), None);
        assert_eq!(
            (dispatcher.open(), dispatcher.emit(P, A)),
            (1, Telling::Content)
        );
    }

    #[test]
    fn a_need_that_its_page_has_crossed_is_no_news() {
        let mut dispatcher = planned();
        let (content, last) = (Some(Record::Content(P, A)), RamPage(3));
        assert_eq!(dispatcher.emit(P, A), Telling::Claim(digest(A)));
        let mut pages = vec![];
        dispatcher.steal(8, &mut pages);
        assert_eq!(pages, [last, P]);
        assert_eq!(dispatcher.stolen(P, A), content);
        // The content settles it, and the destination takes no page behind the end of RAM.
        assert!(!dispatcher.report(P, Outcome::Need));
        assert_eq!(dispatcher.answer(P, A), None);
        assert_eq!(dispatcher.emit(P, A), Telling::Nothing);
    }

    #[test]
    fn what_only_the_lan_can_carry_goes_ahead_of_qemu_once() {
        let mut dispatcher = planned();
        let (zero, first, last) = (&[0; PAGE_BYTES], RamPage(0), RamPage(1));
        let mut pages = vec![];
        dispatcher.look_ahead(8, &mut pages);
        // Pages 2 and 3 are the plan's.
        assert_eq!(pages, [first, last]);
        assert_eq!(dispatcher.ahead(last, zero), None);
        assert_eq!(dispatcher.ahead(first, A), Some(Record::Early(first, A)));
        assert_eq!(dispatcher.ahead(first, A), None);
        assert_eq!(dispatcher.emit(first, A), Telling::Claim(digest(A)));
        assert_eq!(dispatcher.emit(first, B), Telling::Content);
        assert_eq!(dispatcher.emit(last, A), Telling::Content);
        // What QEMU has emitted is not sent ahead, whenever it was looked at.
        assert_eq!(dispatcher.ahead(last, B), None);
        assert!(!dispatcher.can_go_ahead());
        let counts = dispatcher.counts();
        assert_eq!((counts.ahead, counts.content, counts.claimed), (1, 2, 0));
        assert_eq!(counts.ahead_in_vain, 0);
        assert_eq!(dispatcher.open(), 2);
    }

    #[test]
    fn what_was_written_to_since_it_went_ahead_is_sent_again() {
        let mut dispatcher = planned();
        assert!(dispatcher.ahead(RamPage(0), A).is_some());
        assert_eq!(dispatcher.emit(RamPage(0), B), Telling::Content);
        assert!(dispatcher.ahead(RamPage(1), A).is_some());
        dispatcher.emit_zero(RamPage(1));
        assert_eq!(dispatcher.emit(RamPage(1), A), Telling::Content);
        assert_eq!(dispatcher.counts().ahead_in_vain, 2);
    }

    #[test]
    fn stealing_goes_from_the_far_end_to_the_front_and_skips_what_is_settled() {
        let mut dispatcher = planned();
        dispatcher.report(P, Outcome::Lost);
        let mut pages = vec![];
        assert_eq!(dispatcher.steal(8, &mut pages), 0);
        assert_eq!(pages, [RamPage(3)]);
        assert_eq!(
            dispatcher.stolen(RamPage(3), A),
            Some(Record::Early(RamPage(3), A))
        );
        assert_eq!((dispatcher.open(), dispatcher.can_steal()), (0, false));
    }
}
