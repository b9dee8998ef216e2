//! Every interleaving of both machines with a link that may break and processes that may die.

use std::collections::{HashSet, VecDeque};

use super::*;

/// Both hosts: machines, guests, messages under way, and actions whose end is still to come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    source: Option<Source>,
    destination: Option<Destination>,
    source_runs: bool,
    /// The source QEMU has completed: it stays stopped even if nobody attends it any more.
    source_completed: bool,
    destination_runs: bool,
    /// The destination QEMU is gone.
    destination_quit: bool,
    stream_sent: bool,
    linked: bool,
    to_destination: VecDeque<DestinationEvent>,
    to_source: VecDeque<SourceEvent>,
    source_work: Vec<SourceAction>,
    destination_work: Vec<DestinationAction>,
}

impl World {
    fn start() -> World {
        World {
            source: Some(Source::START),
            destination: Some(Destination::Receiving),
            source_runs: true,
            source_completed: false,
            destination_runs: false,
            destination_quit: false,
            stream_sent: false,
            linked: true,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            source_work: vec![],
            destination_work: vec![],
        }
    }

    fn at_source(&self, event: SourceEvent) -> World {
        let mut next = self.clone();
        if let Some(source) = &mut next.source {
            let actions = source.on(event);
            next.source_work.extend(actions);
        }
        next
    }

    fn at_destination(&self, event: DestinationEvent) -> World {
        let mut next = self.clone();
        if let Some(destination) = &mut next.destination {
            let actions = destination.on(event);
            next.destination_work.extend(actions);
        }
        next
    }

    fn do_source(&self) -> World {
        let mut next = self.clone();
        match next.source_work.remove(0) {
            SourceAction::WriteCommit => return next.at_source(SourceEvent::CommitWritten),
            SourceAction::SendRun if next.linked => {
                next.to_destination.push_back(DestinationEvent::PeerRun);
            }
            SourceAction::SendAbort if next.linked => {
                next.to_destination.push_back(DestinationEvent::PeerAborted);
            }
            SourceAction::ResumeGuest => next.source_runs = true,
            SourceAction::SendRun | SourceAction::SendAbort | SourceAction::End(_) => {}
        }
        next
    }

    fn do_destination(&self) -> World {
        let mut next = self.clone();
        match next.destination_work.remove(0) {
            DestinationAction::WriteRun => {
                return next.at_destination(DestinationEvent::RunWritten);
            }
            DestinationAction::StartGuest => {
                assert!(
                    !next.destination_quit,
                    "a guest cannot run in a QEMU that is gone"
                );
                next.destination_runs = true;
                return next.at_destination(DestinationEvent::GuestUp);
            }
            DestinationAction::SendLoaded if next.linked => {
                next.to_source.push_back(SourceEvent::PeerLoaded);
            }
            DestinationAction::SendRunning if next.linked => {
                next.to_source.push_back(SourceEvent::PeerRunning);
            }
            DestinationAction::SendAborted if next.linked => {
                next.to_source.push_back(SourceEvent::PeerAborted);
            }
            DestinationAction::QuitQemu => next.destination_quit = true,
            _ => {}
        }
        next
    }

    /// Everything that can happen next.
    fn successors(&self) -> Vec<World> {
        let mut worlds = self.qemu_moves();
        worlds.extend(self.work_is_done());
        worlds.extend(self.network_delivers());
        worlds.push(self.at_source(SourceEvent::Failed));
        worlds.push(self.at_destination(DestinationEvent::Failed));
        worlds.extend(self.a_process_dies());
        worlds
    }

    fn qemu_moves(&self) -> Vec<World> {
        let mut worlds = vec![];
        let mut add = |world: World| worlds.push(world);
        // QEMU's guest stops, its stream ends; the destination loads it; the source QEMU completes.
        if self.source.is_some() && self.source_runs && !self.stream_sent {
            let may_stop = matches!(self.source, Some(Source::Transferring { .. }));
            if may_stop {
                add(World {
                    source_runs: false,
                    stream_sent: true,
                    ..self.clone()
                });
            }
        }
        if self.stream_sent && self.linked && self.destination == Some(Destination::Receiving) {
            add(self.at_destination(DestinationEvent::Loaded));
        }
        let transferring = matches!(self.source, Some(Source::Transferring { .. }));
        if self.stream_sent && transferring && !self.source_completed {
            add(World {
                source_completed: true,
                ..self.at_source(SourceEvent::QemuCompleted)
            });
        }
        worlds
    }

    fn work_is_done(&self) -> Vec<World> {
        let mut worlds = vec![];
        if !self.source_work.is_empty() && self.source.is_some() {
            worlds.push(self.do_source());
            // A write that fails, instead of its end.
            if self.source_work[0] == SourceAction::WriteCommit {
                let mut next = self.clone();
                next.source_work.remove(0);
                worlds.push(next.at_source(SourceEvent::Failed));
            }
        }
        if !self.destination_work.is_empty() && self.destination.is_some() {
            worlds.push(self.do_destination());
        }
        worlds
    }

    /// A message arrives, or the connection is lost and both sides come to know.
    fn network_delivers(&self) -> Vec<World> {
        if !self.linked {
            return vec![
                self.at_source(SourceEvent::PeerLost),
                self.at_destination(DestinationEvent::PeerLost),
            ];
        }
        let mut worlds = vec![self.cut()];
        let mut next = self.clone();
        if let Some(event) = next.to_destination.pop_front() {
            worlds.push(next.at_destination(event));
        }
        let mut next = self.clone();
        if let Some(event) = next.to_source.pop_front() {
            worlds.push(next.at_source(event));
        }
        worlds
    }

    /// The same, without a connection.
    fn cut(&self) -> World {
        World {
            linked: false,
            to_source: VecDeque::new(),
            to_destination: VecDeque::new(),
            ..self.clone()
        }
    }

    /// QEMU lives on: a migration that had not completed fails, and its guest runs on.
    fn a_process_dies(&self) -> Vec<World> {
        let mut worlds = vec![];
        if self.source.is_some() {
            worlds.push(World {
                source: None,
                source_runs: self.source_runs || !self.source_completed,
                source_work: vec![],
                ..self.cut()
            });
        }
        if self.destination.is_some() {
            worlds.push(World {
                destination: None,
                destination_work: vec![],
                ..self.cut()
            });
        }
        worlds
    }
}

#[test]
fn at_most_one_side_ever_runs_the_guest() {
    let mut known = HashSet::from([World::start()]);
    let mut open = vec![World::start()];
    let mut ends = HashSet::new();
    while let Some(world) = open.pop() {
        assert!(
            !(world.source_runs && world.destination_runs),
            "two guests: {world:?}"
        );
        if let (Some(Source::Ended(at_source)), Some(Destination::Ended(at_destination))) =
            (world.source, world.destination)
            && world.source_work.is_empty()
            && world.destination_work.is_empty()
        {
            ends.insert((at_source, at_destination));
            match (at_source, at_destination) {
                (End::Moved, _) => assert!(world.destination_runs && !world.source_runs),
                (End::Stayed, _) => assert!(world.source_runs && !world.destination_runs),
                // Nobody may have ended the only QEMU in which the guest could go on.
                (End::Uncertain, _) => assert!(!world.source_runs && !world.destination_quit),
            }
        }
        for next in world.successors() {
            if known.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    assert!(ends.contains(&(End::Moved, End::Moved)));
    assert!(ends.contains(&(End::Stayed, End::Stayed)));
    assert!(ends.contains(&(End::Stayed, End::Uncertain)));
    assert!(ends.contains(&(End::Uncertain, End::Uncertain)));
    assert!(known.len() > 500, "only {} worlds were seen", known.len());
}
