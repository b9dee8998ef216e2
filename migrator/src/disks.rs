//! Disks as QEMU knows them.
