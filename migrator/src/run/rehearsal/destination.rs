//! The destination's part of a rehearsal: throws away what the LAN brings, and reads a sample of the plan as a migration
//! would. It trusts no length and no time of the source's, and does not know QEMU.

use std::time::Duration;

use anyhow::{bail, ensure};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::{BYTES_MAX, MEASURED, WARM_UP};
use crate::core::plan::Plan;
use crate::core::ram::PAGE_BYTES;
use crate::core::wire::{self, Kind, Sampled};
use crate::run::destination::reads::{READING_BYTES_MAX, Reads};
use crate::run::lan::{LanIn, LanOut};
use crate::run::storage::Storage;

/// Storage so slow that it has not got going by then is measured from the start.
const SAMPLE_TIME_MAX: Duration = Duration::from_secs(4);
/// Reads that take longer are given up.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// Pages of the plan that are read one after the other: 4 MiB, so that the way from one piece to the next, which a
/// migration does not go, costs little even where heads move.
const PIECE_PAGES: u32 = 1024;

/// Bytes that each network carried in a rehearsal.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// Over the LAN, all thrown away.
    pub lan_bytes: u64,
    /// From storage.
    pub san_bytes: u64,
}

/// Serves one rehearsal, until the source closes the connection.
pub async fn serve(lan: (LanIn, LanOut), plan: &Plan, storage: Storage) -> anyhow::Result<Carried> {
    let (lan_in, lan_out) = lan;
    let mut reads = Reads::new(plan.spread(PIECE_PAGES), storage);
    let measure = async {
        let sampled = sample(&mut reads).await?;
        let sent = lan_out.send(wire::message_frame(Kind::Sampled, &sampled));
        sent.await?;
        drain(&mut reads).await
    };
    let (lan_bytes, ()) = tokio::try_join!(throw_away(lan_in.into_channel()), measure)?;
    Ok(Carried {
        lan_bytes,
        san_bytes: reads.progress().san_bytes,
    })
}

/// Takes the source's bytes; how many there were.
async fn throw_away(
    mut frames: mpsc::Receiver<anyhow::Result<(Kind, Bytes)>>,
) -> anyhow::Result<u64> {
    let mut bytes = 0;
    while let Some(frame) = frames.recv().await {
        match frame? {
            (Kind::Probe, body) => bytes += body.len() as u64,
            (kind, _) => bail!("the source sent {kind:?} in a rehearsal"),
        }
        ensure!(
            bytes <= BYTES_MAX,
            "the source sent more than {BYTES_MAX} bytes to be thrown away"
        );
    }
    Ok(bytes)
}

/// Reads pieces that lie evenly over the plan. What storage gave before it had got going is left out.
async fn sample(reads: &mut Reads) -> anyhow::Result<Sampled> {
    let begun = Instant::now();
    let mut until = begun + SAMPLE_TIME_MAX;
    let (mut all, mut early) = (Sampled::default(), Sampled::default());
    loop {
        reads.issue(|_| true);
        if reads.reading() == 0 || all.bytes >= BYTES_MAX {
            break;
        }
        let Ok(Some(completed)) = timeout_at(until, reads.completed()).await else {
            break;
        };
        if let (op, Some(_)) = reads.finish(completed)? {
            all.pages += op.pages.len() as u64;
        }
        let progress = reads.progress();
        (all.bytes, all.busy_us) = (progress.san_bytes, progress.san_busy_us);
        let has_got_going = begun.elapsed() >= WARM_UP && all.bytes >= READING_BYTES_MAX;
        if early == Sampled::default() && has_got_going {
            early = all;
            until = until.min(Instant::now() + MEASURED);
        }
    }
    Ok(without(all, early))
}

/// Waits for what is being read: a storage server that answers nobody complains.
async fn drain(reads: &mut Reads) -> anyhow::Result<()> {
    let until = Instant::now() + DRAIN_TIME_MAX;
    while reads.reading() > 0 {
        let Ok(Some(completed)) = timeout_at(until, reads.completed()).await else {
            break;
        };
        reads.finish(completed)?;
    }
    Ok(())
}

/// What came after `early`, unless that is too little to tell anything.
fn without(all: Sampled, early: Sampled) -> Sampled {
    if all.pages - early.pages < READING_BYTES_MAX / PAGE_BYTES as u64 {
        return all;
    }
    Sampled {
        pages: all.pages - early.pages,
        bytes: all.bytes - early.bytes,
        busy_us: all.busy_us - early.busy_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_or_fast_start_is_not_counted() {
        let sampled = |pages, busy_us| Sampled {
            pages,
            bytes: pages * 5000,
            busy_us,
        };
        let (all, early) = (sampled(20_000, 1_250_000), sampled(5000, 250_000));
        assert_eq!(without(all, early), sampled(15_000, 1_000_000));
        assert_eq!(without(all, Sampled::default()), all);
        // Storage that had hardly more: all of it is told.
        assert_eq!(without(all, sampled(19_000, 1_200_000)), all);
    }

    #[tokio::test]
    async fn what_a_source_may_send_is_bounded() {
        async fn sent(frames: Vec<(Kind, usize)>) -> anyhow::Result<u64> {
            let (sender, receiver) = mpsc::channel(1);
            let send = async move {
                for (kind, bytes) in frames {
                    let _ = sender.send(Ok((kind, vec![0; bytes].into()))).await;
                }
            };
            tokio::join!(send, throw_away(receiver)).1
        }
        let most = (BYTES_MAX >> 20) as usize;
        let mib = |n| vec![(Kind::Probe, 1 << 20); n];
        assert_eq!(sent(mib(most)).await.unwrap(), BYTES_MAX);
        let error = sent([mib(most), vec![(Kind::Probe, 1)]].concat()).await;
        assert!(error.unwrap_err().to_string().contains("more than"));
        let error = sent(vec![(Kind::Probe, 1), (Kind::Run, 1)]).await;
        assert!(error.unwrap_err().to_string().contains("Run"));
    }
}
