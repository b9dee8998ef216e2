//! The journal: what a host has promised about a guest, on disk before it acts on the promise. A file a
//! migration and side, a JSON line a promise.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Which side wrote a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The host that the guest leaves.
    Source,
    /// The host that it comes to.
    Destination,
}

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promise {
    /// The migration began.
    Begin,
    /// Source: the guest is the destination's; it never runs here again by itself.
    Commit,
    /// Destination: the guest is ours.
    Run,
}

/// A line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// The migration.
    pub id: String,
    /// The side.
    pub side: Side,
    /// The promise.
    pub promise: Promise,
    /// The QMP socket or PID of this side's QEMU, as the operator named it.
    pub qemu: String,
    /// What is promised of the guest if it is this side's: it runs, or stays paused. In a COMMIT, of the destination's.
    pub runs: bool,
}

/// One side's journal of one migration.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    id: String,
    side: Side,
    qemu: String,
}

/// Where journals are kept: a directory that outlives a reboot.
pub fn default_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/pct-vmi".into();
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/state");
    state.unwrap_or_else(home).join("pct-vmi")
}

fn path_of(dir: &Path, id: &str, side: Side) -> PathBuf {
    let side = match side {
        Side::Source => "source",
        Side::Destination => "destination",
    };
    dir.join(format!("{id}.{side}.journal"))
}

impl Journal {
    /// Begins the journal of migration `id` in `dir`. The guest `runs` if it stays this side's.
    pub fn begin(
        dir: &Path,
        id: u128,
        side: Side,
        qemu: &str,
        runs: bool,
    ) -> anyhow::Result<Journal> {
        let id = format!("{id:032x}");
        let path = path_of(dir, &id, side);
        let create = || {
            std::fs::create_dir_all(dir)?;
            File::options().create_new(true).append(true).open(&path)
        };
        let file = create().with_context(|| {
            format!(
                "cannot create the journal {}; name a writable directory with --journal-dir",
                path.display()
            )
        })?;
        let mut journal = Journal {
            file,
            path,
            id,
            side,
            qemu: qemu.into(),
        };
        journal.write(Promise::Begin, runs)?;
        journal.sync_name()?;
        Ok(journal)
    }

    /// A file's name has to survive a crash too, and so has its end.
    fn sync_name(&self) -> anyhow::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .context("cannot sync the journal's directory")
    }

    /// The migration's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Writes a promise, of a guest that `runs` or stays paused; it is on disk when this returns. One that could not be
    /// written was not made.
    pub fn write(&mut self, promise: Promise, runs: bool) -> anyhow::Result<()> {
        let line = Line {
            id: self.id.clone(),
            side: self.side,
            promise,
            qemu: self.qemu.clone(),
            runs,
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        let len = self.file.metadata()?.len();
        let written = self
            .file
            .write_all(&text)
            .and_then(|()| self.file.sync_all());
        if written.is_err() {
            // A disk that refuses this as well leaves at worst a promise that nobody acts on.
            let _ = self.file.set_len(len);
        }
        written.with_context(|| format!("cannot write the journal {}", self.path.display()))
    }

    /// Ends the journal of a migration about which nothing is uncertain: the file goes. One that is still there after
    /// a crash says what was promised last, which is no less true.
    pub fn end(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove the journal {}", self.path.display()))?;
        self.sync_name()
    }
}

/// The last promise in the journal of migration `id`; none where there is no such journal.
pub fn last(dir: &Path, id: &str, side: Side) -> anyhow::Result<Option<Line>> {
    let path = path_of(dir, id, side);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read the journal {}", path.display()))?,
    };
    // A line that a crash cut short promises nothing: nobody has acted on it. Any other has to be understood.
    let lines = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let lines: Result<Vec<Line>, _> = lines.map(serde_json::from_str).collect();
    let mut lines = lines.with_context(|| {
        format!(
            "the journal {} is not of this version of pct-vmi",
            path.display()
        )
    })?;
    Ok(lines.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_promise_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), 7, Side::Source, "qmp", true).unwrap();
        let id = journal.id().to_owned();
        let promise = || {
            last(dir.path(), &id, Side::Source)
                .unwrap()
                .map(|line| (line.promise, line.runs))
        };
        assert_eq!(promise(), Some((Promise::Begin, true)));
        journal.write(Promise::Commit, false).unwrap();
        assert_eq!(promise(), Some((Promise::Commit, false)));
        journal.file.write_all(b"{\"id\":").unwrap();
        assert_eq!(promise(), Some((Promise::Commit, false)));
        assert!(last(dir.path(), &id, Side::Destination).unwrap().is_none());
        journal.end().unwrap();
        assert_eq!(promise(), None);
    }

    #[test]
    fn a_promise_that_is_not_understood_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::begin(dir.path(), 7, Side::Source, "qmp", true).unwrap();
        journal
            .file
            .write_all(b"{\"promise\":\"given\"}\n")
            .unwrap();
        assert!(last(dir.path(), journal.id(), Side::Source).is_err());
    }

    #[test]
    fn a_journal_that_is_gone_already_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::begin(dir.path(), 7, Side::Source, "qmp", true).unwrap();
        drop(dir);
        assert!(journal.end().is_err());
    }

    #[test]
    fn a_migration_has_one_journal_a_side() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Journal::begin(dir.path(), 7, Side::Source, "qmp", true).unwrap();
        assert!(Journal::begin(dir.path(), 7, Side::Source, "qmp", true).is_err());
    }
}
