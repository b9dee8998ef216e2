//! Moves a running VM between two stock QEMUs.

pub mod cmd;
pub mod core;
pub mod disks;
pub mod qmp;
pub mod run;
pub mod vm;
