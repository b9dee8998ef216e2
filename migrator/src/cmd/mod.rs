//! The subcommands, a file each. Exit codes are the same for all.

pub mod migrate;
pub mod receive;
pub mod scan;
pub mod settle;

/// What every subcommand's help ends with.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed; the message says why and what to do. The guest runs on where it ran
  2  the command line is wrong
  3  uncertain whose the guest is: both sides hold still, the message names the command that settles it";
