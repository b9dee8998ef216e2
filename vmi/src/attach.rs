//! From a kernel that was found to one whose structs can be read, by a profile: the one that was
//! given, one that is kept for its build, or one derived from its own memory. A profile is believed
//! only as far as the guest agrees with it.

use profiles::{BtfError, KallsymsError, MissingFields, Profile, Store, StoreError, ready};
use thiserror::Error;

use crate::address::Gva;
use crate::derive::Running;
use crate::find::find;
use crate::kernel::Kernel;
use crate::memory::{GuestMemory, MemoryError};

/// Profiles tried before the guest has told which build it runs.
const KNOWN_MAX: usize = 256;

/// What a vCPU's registers say about its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuRegisters {
    pub cr3: u64,
    pub cr4: u64,
}

/// Profiles that may be used in place of a look at the guest's own types.
#[derive(Debug, Clone, Default)]
pub struct Profiles {
    /// Named by the operator: used or refused, never passed over.
    pub given: Option<Profile>,
    /// The profile directory, in which also is kept what was derived.
    pub store: Option<Store>,
}

/// Where the profile that a kernel is read by came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileOrigin {
    GuestMemory,
    /// The profile directory, or those that come with pct-vmi.
    Kept,
    /// Kept, and completed with types of modules from the guest's memory.
    Completed,
    Given,
}

/// Why no kernel could be read.
#[derive(Debug, Error)]
pub enum AttachError {
    #[error(
        "no VMCOREINFO note in guest memory: not a Linux guest, one without CONFIG_VMCORE_INFO, \
         or one that has not booted yet"
    )]
    NoVmcoreinfo,
    #[error(
        "the VMCOREINFO notes in guest memory belong to no running kernel ({0}): the guest has \
         rebooted or is booting"
    )]
    Stale(String),
    #[error("guest memory holds several kernels ({0}) and nothing tells which one runs")]
    Ambiguous(String),
    #[error("VMCOREINFO lacks {0}")]
    Vmcoreinfo(&'static str),
    #[error("the kernel's image at {address} is not mapped")]
    Image { address: Gva },
    #[error("cannot read the kernel's image")]
    Memory(#[from] MemoryError),
    #[error("cannot read the kernel's symbols")]
    Kallsyms(#[from] KallsymsError),
    #[error("nothing tells where the kernel's symbol {0} is")]
    Symbol(&'static str),
    #[error(
        "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF); make a profile of it with \
         `pct-vmi profile generate` and name it with --profile"
    )]
    NoBtf,
    #[error("cannot read the kernel's BTF")]
    Btf(#[from] BtfError),
    #[error(transparent)]
    MissingFields(#[from] MissingFields),
    #[error("guest memory contradicts {0}: the guest is still booting, or this is not its kernel")]
    Contradiction(String),
    #[error(
        "the given profile is of kernel {profile}, the guest runs {guest}; leave it out, or name \
         one of that kernel"
    )]
    OtherKernel { profile: String, guest: String },
    #[error("the given profile cannot be used")]
    Given(#[source] Box<AttachError>),
}

impl Profiles {
    /// Those that may be of any guest, the likeliest first.
    pub(crate) fn known(&self) -> impl Iterator<Item = Profile> {
        let stored = self.store.iter().flat_map(Store::newest_first);
        let given = self.given.iter().cloned();
        given.chain(stored.take(KNOWN_MAX)).chain(ready::all())
    }

    /// What is kept of a build, and why a file of it could not be used.
    fn kept(&self, build_id: &str) -> (Option<Profile>, Option<StoreError>) {
        let (stored, problem) = match self.store.as_ref().map(|store| store.load(build_id)) {
            Some(Ok(stored)) => (stored, None),
            Some(Err(problem)) => (None, Some(problem)),
            None => (None, None),
        };
        let kept = match (stored, ready::find(build_id)) {
            (Some(mut stored), Some(ready)) => {
                stored.complete_from(&ready);
                Some(stored)
            }
            (stored, ready) => stored.or(ready),
        };
        (kept, problem)
    }
}

/// Finds the kernel. `vcpus` may be empty, as for a dump.
///
/// # Errors
/// When there is no Linux kernel, several, or one that lacks something that is read; when the given
/// profile is not the guest's.
pub fn attach<'m>(
    mem: &'m dyn GuestMemory,
    vcpus: &[VcpuRegisters],
    profiles: &Profiles,
) -> Result<Kernel<'m>, AttachError> {
    let running = find(mem, vcpus, profiles)?;
    match &profiles.given {
        Some(given) => {
            running.has_identity(given)?;
            let kernel = by_profile(&running, given.clone());
            let mut kernel = kernel.map_err(|error| AttachError::Given(Box::new(error)))?;
            kernel.origin = ProfileOrigin::Given;
            Ok(kernel)
        }
        None => by_kept_or_derived(&running, profiles),
    }
}

fn by_kept_or_derived<'m>(
    running: &Running<'m>,
    profiles: &Profiles,
) -> Result<Kernel<'m>, AttachError> {
    let (kept, mut problem) = match running.build_id() {
        Some(build_id) => profiles.kept(build_id),
        None => (None, None),
    };
    // One that does not fit after all is derived anew, and then replaced.
    let by_kept = kept.clone().and_then(|kept| by_profile(running, kept).ok());
    let mut kernel = match by_kept {
        Some(kernel) => kernel,
        None => running.kernel(running.derive()?)?,
    };
    if let Some(store) = &profiles.store
        && kept.as_ref() != Some(&kernel.profile)
        && running.build_id().is_some()
    {
        problem = store.save(&kernel.profile).err().or(problem);
    }
    kernel.profile_problem = problem.map(|problem| problem.to_string());
    Ok(kernel)
}

/// The kernel as a profile describes it, with what the guest has and the profile lacks.
fn by_profile<'m>(running: &Running<'m>, mut profile: Profile) -> Result<Kernel<'m>, AttachError> {
    let usable = match running.kernel(profile.clone()) {
        Ok(mut kernel) => {
            kernel.origin = ProfileOrigin::Kept;
            if kernel.profile.is_current() && kernel.modules_to_learn().is_empty() {
                return Ok(kernel);
            }
            Some(kernel)
        }
        Err(error @ (AttachError::Contradiction(_) | AttachError::OtherKernel { .. })) => {
            return Err(error);
        }
        // It lacks types or symbols: those may be in the guest.
        Err(_) => None,
    };
    let derived = match (running.derive(), usable) {
        (Ok(derived), _) => derived,
        (Err(_), Some(kernel)) => return Ok(kernel),
        (Err(error), None) => return Err(error),
    };
    profile.complete_from(&derived);
    let mut kernel = running.kernel(profile)?;
    kernel.origin = ProfileOrigin::Completed;
    Ok(kernel)
}
