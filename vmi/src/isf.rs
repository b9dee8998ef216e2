//! A running kernel's whole description of itself, as Volatility 3 reads it: all types of the kernel and
//! of its loaded modules, all symbols. Nothing of it is judged; that is for who reads it.

use profiles::isf::Isf;
use profiles::{Btf, Kallsyms};

use crate::attach::{AttachError, Profiles, VcpuRegisters};
use crate::find::find;
use crate::kernel::split_btf;
use crate::memory::GuestMemory;

/// "Linux version …" with its compiler and build has about 200 bytes.
const BANNER_BYTES_MAX: usize = 512;
/// Where the kernel's own symbols begin; below are offsets into per-CPU areas, which do not move.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// The ISF, in JSON, of the kernel that runs. `vcpus` may be empty, as for a dump.
///
/// # Errors
/// As for [`crate::attach()`]; when the kernel has no BTF.
pub fn isf(mem: &dyn GuestMemory, vcpus: &[VcpuRegisters]) -> Result<String, AttachError> {
    let running = find(mem, vcpus, &Profiles::default())?;
    let image = running.image()?;
    let kallsyms = Kallsyms::find(image, Some(running.info()))?;
    let moved = running.moved();
    let [banner, start, stop] = kallsyms.lookup(["linux_banner", "__start_BTF", "__stop_BTF"]);
    let (Some(start), Some(stop)) = (start, stop) else {
        return Err(AttachError::NoBtf);
    };
    let banner = banner.and_then(|at| image.from(at)).unwrap_or_default();
    let banner = banner.get(..BANNER_BYTES_MAX).unwrap_or(banner);
    let banner = banner.split(|&byte| byte == 0).next().unwrap_or_default();

    let btf = Btf::parse(running.btf(start, stop)?)?;
    let kernel = running.kernel(running.derive()?)?;
    let blobs = kernel.read_btf(&kernel.modules_with_btf());
    let splits = split_btf(&blobs, &btf);
    let linked = |(name, address): (String, u64)| match address >= START_KERNEL_MAP {
        true => (name, address.wrapping_sub(moved)),
        false => (name, address),
    };
    let symbols = kallsyms.symbols().into_iter().map(linked);
    Ok(Isf::new(&btf, &splits, symbols, banner).to_json())
}
