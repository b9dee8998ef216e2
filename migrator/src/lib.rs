//! Moves a running VM between two stock QEMUs.

// They panic where nobody reads any more: run::say and run::warn do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cmd;
pub mod core;
pub mod disks;
pub mod qmp;
pub mod run;
pub mod vm;
