//! The handover: the last exchange, in which the guest becomes the destination's. At most one side ever runs
//! the guest, whatever dies and whenever; before COMMIT it is the source's, after it the destination's.
//!
//! Two machines, events in, actions out. They know no time: a time-out is an event like a lost peer.

/// What the source learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The source QEMU has completed the migration: its guest is stopped for good unless resumed.
    QemuCompleted,
    /// The destination has all pages settled, device state loaded, its guest paused.
    PeerLoaded,
    /// COMMIT is in the journal, on disk.
    CommitWritten,
    /// The destination has the guest as it was asked for.
    PeerRunning,
    /// The destination gave up: its QEMU is gone, its guest will never run.
    PeerAborted,
    /// The connection is lost, or the peer is silent for too long.
    PeerLost,
    /// Something failed here: QEMU, the journal, the operator's Ctrl-C.
    Failed,
}

/// What the source must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Write COMMIT to the journal and sync it; then [`SourceEvent::CommitWritten`].
    WriteCommit,
    /// Tell the destination that the guest is its own.
    SendRun,
    /// Tell the destination to give up; its answer is [`SourceEvent::PeerAborted`].
    SendAbort,
    /// Cancel the migration, or continue the guest if it was stopped for it.
    ResumeGuest,
    /// It is over.
    End(End),
}

/// How a side ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest is at the destination.
    Moved,
    /// The guest is at the source; the destination's never ran and never will.
    Stayed,
    /// This side cannot know: it holds still, and the operator decides.
    Uncertain,
}

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// QEMU's stream is under way, or the destination has yet to load it.
    Transferring {
        /// The source QEMU has completed.
        completed: bool,
        /// The destination has loaded.
        loaded: bool,
    },
    /// COMMIT is being written.
    Committing,
    /// COMMIT is on disk: from here on the source never runs the guest by itself.
    Committed,
    /// Going back: the destination's QEMU must be gone before the guest continues.
    Retreating,
    /// Over.
    Ended(End),
}

impl Source {
    /// The beginning.
    pub const START: Source = Source::Transferring {
        completed: false,
        loaded: false,
    };

    /// Whether COMMIT is on disk: the guest is no longer the source's.
    pub fn is_committed(self) -> bool {
        matches!(
            self,
            Source::Committed | Source::Ended(End::Moved | End::Uncertain)
        )
    }

    /// Takes one event.
    pub fn on(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        use SourceAction as Do;
        use SourceEvent as On;
        let (next, actions) = match (*self, event) {
            (Source::Transferring { completed, loaded }, On::QemuCompleted | On::PeerLoaded) => {
                let completed = completed || event == On::QemuCompleted;
                let loaded = loaded || event == On::PeerLoaded;
                if completed && loaded {
                    (Source::Committing, vec![Do::WriteCommit])
                } else {
                    (Source::Transferring { completed, loaded }, vec![])
                }
            }
            // A COMMIT whose write failed is as good as none: Run was never sent.
            (Source::Transferring { .. } | Source::Committing, On::Failed) => {
                (Source::Retreating, vec![Do::SendAbort])
            }
            (Source::Transferring { .. } | Source::Retreating, On::PeerAborted | On::PeerLost) => (
                Source::Ended(End::Stayed),
                vec![Do::ResumeGuest, Do::End(End::Stayed)],
            ),
            (Source::Committing, On::CommitWritten) => (Source::Committed, vec![Do::SendRun]),
            (Source::Committed, On::PeerRunning) => {
                (Source::Ended(End::Moved), vec![Do::End(End::Moved)])
            }
            (Source::Committed, On::PeerLost | On::PeerAborted | On::Failed) => {
                (Source::Ended(End::Uncertain), vec![Do::End(End::Uncertain)])
            }
            // While COMMIT is being written nothing else counts: the write's end decides what follows.
            (same, _) => (same, vec![]),
        };
        *self = next;
        actions
    }
}

/// What the destination learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// All pages are settled and QEMU has loaded the device state.
    Loaded,
    /// The source says that the guest is ours.
    PeerRun,
    /// The source gave up.
    PeerAborted,
    /// That the guest is ours is in the journal, on disk.
    RunWritten,
    /// QEMU has the guest as it was asked for.
    GuestUp,
    /// The connection is lost, or the peer is silent for too long.
    PeerLost,
    /// Something failed here.
    Failed,
}

/// What the destination must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Tell the source that everything is loaded.
    SendLoaded,
    /// Write to the journal that the guest is ours; then [`DestinationEvent::RunWritten`].
    WriteRun,
    /// Continue the guest, or leave it paused if that was asked for; then [`DestinationEvent::GuestUp`].
    StartGuest,
    /// Tell the source that the guest is up.
    SendRunning,
    /// End QEMU: its guest must never run.
    QuitQemu,
    /// Tell the source that QEMU is gone.
    SendAborted,
    /// It is over.
    End(End),
}

/// Where the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Pages and device state are arriving.
    Receiving,
    /// Loaded and paused; the source decides.
    Loaded,
    /// The guest is ours; the journal is being written.
    Accepting,
    /// The guest is being started.
    Starting,
    /// Over.
    Ended(End),
}

impl Destination {
    /// Takes one event.
    pub fn on(&mut self, event: DestinationEvent) -> Vec<DestinationAction> {
        use DestinationAction as Do;
        use DestinationEvent as On;
        let stayed = [Do::QuitQemu, Do::SendAborted, Do::End(End::Stayed)];
        let (next, actions) = match (*self, event) {
            (Destination::Receiving, On::Loaded) => (Destination::Loaded, vec![Do::SendLoaded]),
            (Destination::Receiving, On::PeerAborted | On::PeerLost | On::Failed)
            | (Destination::Loaded, On::PeerAborted) => {
                (Destination::Ended(End::Stayed), stayed.into())
            }
            // Whether the source has committed is not known here: hold still. To end QEMU now could lose the guest.
            (Destination::Loaded, On::PeerLost | On::Failed) => (
                Destination::Ended(End::Uncertain),
                vec![Do::End(End::Uncertain)],
            ),
            (Destination::Loaded, On::PeerRun) => (Destination::Accepting, vec![Do::WriteRun]),
            (Destination::Accepting, On::RunWritten) => {
                (Destination::Starting, vec![Do::StartGuest])
            }
            (Destination::Starting, On::GuestUp) => (
                Destination::Ended(End::Moved),
                vec![Do::SendRunning, Do::End(End::Moved)],
            ),
            (Destination::Accepting | Destination::Starting, On::Failed) => (
                Destination::Ended(End::Uncertain),
                vec![Do::End(End::Uncertain)],
            ),
            // The guest is ours: a lost peer changes nothing any more.
            (same, _) => (same, vec![]),
        };
        *self = next;
        actions
    }
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
