#![allow(unsafe_code)] // The standard library has no clock of a thread's CPU time.
//! What this thread's CPU time was spent on. It measures nothing else.

use std::time::Duration;

/// Who a moment belonged to.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Source,
    Destination,
    /// Made-up QEMU, storage and guest RAM, and the copy that the network would make.
    World,
}

/// This thread's CPU time, by part.
pub(crate) struct Meter {
    at: Duration,
    spent: [Duration; 3],
}

impl Meter {
    pub(crate) fn start() -> Meter {
        Meter {
            at: thread_cpu_time(),
            spent: Default::default(),
        }
    }

    /// All since the last lap was `part`'s.
    pub(crate) fn lap(&mut self, part: Part) {
        let now = thread_cpu_time();
        self.spent[part as usize] += now - self.at;
        self.at = now;
    }

    pub(crate) fn ms(&self, part: Part) -> f64 {
        self.spent[part as usize].as_secs_f64() * 1e3
    }
}

fn thread_cpu_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec, which `now` is.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    assert_eq!(result, 0, "Linux has had this clock since 2.6.12");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
