//! The subcommands, a file each. Exit codes are the same for all; `scan --verify` has one more.

use std::path::PathBuf;

pub mod migrate;
pub mod profile;
pub mod receive;
pub mod scan;
pub mod settle;

/// What every subcommand's help ends with.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed; the message says why and what to do. The guest runs on where it ran
  2  the command line is wrong
  3  uncertain whose the guest is: both sides hold still, the message names the command that settles it";

/// Which profile a guest's kernel is read by.
#[derive(Debug, clap::Args)]
pub struct ProfileArgs {
    /// A profile of the guest's kernel, as `pct-vmi profile generate` makes it. Left out, the profile
    /// directory ($XDG_CACHE_HOME/pct-vmi/profiles) and the guest's own memory tell.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

impl ProfileArgs {
    /// The named profile and the profile directory.
    ///
    /// # Errors
    /// When the named file is no profile.
    pub fn profiles(&self) -> anyhow::Result<vmi::Profiles> {
        let given = self.profile.as_deref().map(profiles::store::read);
        Ok(vmi::Profiles {
            given: given.transpose()?,
            store: profiles::Store::open_default(),
        })
    }
}
