//! The memory of a KVM guest through memflow's kernel module: for hosts where the QEMU process may
//! not be read. Without the cargo feature `memflow-kvm` it only says so.

use std::sync::Arc;

use crate::memory::{GuestMemory, MemoryError};

/// Opens the guest of QEMU process `pid`.
///
/// # Errors
/// When this build has no memflow-kvm, the host has not its module loaded, or the process is no KVM guest.
#[cfg(feature = "memflow-kvm")]
pub fn memflow_kvm(pid: i32) -> Result<Arc<dyn GuestMemory>, MemoryError> {
    use ::memflow::plugins::ConnectorArgs;

    use crate::memory::memflow::MemflowSource;

    const DEVICE: &str = "/dev/memflow";
    // memflow-kvm gives one error for everything; this one has a remedy of its own.
    if let Err(error) = std::fs::File::open(DEVICE) {
        return Err(MemoryError::Connector(format!(
            "cannot open {DEVICE} ({error}): memflow-kvm needs its kernel module on this host \
             (modprobe memflow) and root; without it name QEMU's PID or QMP socket alone"
        )));
    }
    let arguments = ConnectorArgs::new(Some(&pid.to_string()), Default::default(), None);
    let connector = ::memflow_kvm::create_connector(&arguments).map_err(|error| {
        MemoryError::Connector(format!(
            "memflow-kvm: {error}; is process {pid} a KVM guest?"
        ))
    })?;
    Ok(Arc::new(MemflowSource::new(connector)?))
}

/// As above, without the feature.
#[cfg(not(feature = "memflow-kvm"))]
pub fn memflow_kvm(_pid: i32) -> Result<Arc<dyn GuestMemory>, MemoryError> {
    Err(MemoryError::Connector(
        "this pct-vmi was built without memflow-kvm; build it with: cargo build --release --features \
         memflow-kvm (which needs libclang)"
            .into(),
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn memflow_kvm_says_what_it_lacks() {
        let lacks = super::memflow_kvm(1).err().unwrap().to_string();
        let expected = match cfg!(feature = "memflow-kvm") {
            true => "cannot open /dev/memflow",
            false => "--features memflow-kvm",
        };
        assert!(lacks.contains(expected), "{lacks}");
    }
}
