//! The pure core of a migration: values in, values out. No socket, disk, clock or QEMU here, so that
//! all of it can be tested, fuzzed and model-checked by itself.

pub mod assembler;
pub mod digest;
pub mod dispatcher;
pub mod handover;
pub mod pieces;
pub mod plan;
pub mod prediction;
pub mod ram;
pub mod stream;
pub mod wire;

#[cfg(test)]
mod model_tests;
