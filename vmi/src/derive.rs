//! The running kernel's own description of itself, and the kernel that a profile makes of it: its
//! image gives symbols (kallsyms) and types (BTF), its list of modules gives theirs. A profile whose
//! symbols or types contradict what the guest says is an error, never a guess.

use std::cell::OnceCell;

use profiles::layout::Layouts;
use profiles::profile::{Identity, SYMBOLS};
use profiles::{Btf, Image, Kallsyms, Layers, Profile, Types, Vmcoreinfo};

use crate::address::Gva;
use crate::attach::{AttachError, ProfileOrigin};
use crate::find::{Found, MappedImage};
use crate::kernel::{Kernel, KernelInfo, Space, split_btf};
use crate::memory::GuestMemory;

/// The largest seen is 5.3 MB. An index over it takes about four times as much.
const BTF_BYTES_MAX: u64 = 16 << 20;
/// Looks at a list that changes while it is looked at.
const LIST_TRIES: usize = 3;

/// A kernel that runs, not yet understood.
pub(crate) struct Running<'m> {
    mem: &'m dyn GuestMemory,
    found: Found,
    /// From `_stext` on; read when it is first needed.
    image: OnceCell<Vec<u8>>,
}

impl<'m> Running<'m> {
    pub(crate) fn new(mem: &'m dyn GuestMemory, found: Found, image: Option<Vec<u8>>) -> Self {
        Running {
            mem,
            found,
            image: image.map(OnceCell::from).unwrap_or_default(),
        }
    }

    pub(crate) fn build_id(&self) -> Option<&str> {
        self.found.info.text("BUILD-ID")
    }

    fn release(&self) -> &str {
        self.found.info.text("OSRELEASE").unwrap_or("unknown")
    }

    /// Whether the profile is of this build, or of this release where a build is not known.
    pub(crate) fn has_identity(&self, profile: &Profile) -> Result<(), AttachError> {
        let same = match (profile.kernel.build_id.as_deref(), self.build_id()) {
            (Some(of_profile), Some(of_guest)) => of_profile == of_guest,
            _ => profile.kernel.release == self.release(),
        };
        let name = |release: &str, build: Option<&str>| match build {
            Some(build) => format!("{release} (build {build})"),
            None => release.to_owned(),
        };
        same.then_some(()).ok_or_else(|| AttachError::OtherKernel {
            profile: name(&profile.kernel.release, profile.kernel.build_id.as_deref()),
            guest: name(self.release(), self.build_id()),
        })
    }

    /// A profile from the guest's memory alone. Without types where the kernel has no BTF.
    pub(crate) fn derive(&self) -> Result<Profile, AttachError> {
        let image = self.image()?;
        let info = &self.found.info;
        let addresses = Kallsyms::find(image, Some(info))?.lookup(SYMBOLS);
        let symbol = |name: &str| addresses[SYMBOLS.iter().position(|&known| known == name)?];
        let moved = self.moved();
        let profile = |types: &dyn Types| Profile::new(self.identity(), types, moved, symbol);

        let (Some(start), Some(stop)) = (symbol("__start_BTF"), symbol("__stop_BTF")) else {
            return Ok(profile(&Layers(Vec::new())));
        };
        let btf = Btf::parse(self.btf(start, stop)?)?;
        let kernel = self.kernel(profile(&btf))?;
        let blobs = kernel.read_btf(&kernel.modules_to_learn());
        let splits = split_btf(&blobs, &btf);
        let of_modules = splits.iter().map(|split| split as &dyn Types);
        Ok(profile(&Layers(of_modules.chain([&btf as _]).collect())))
    }

    pub(crate) fn info(&self) -> &Vmcoreinfo {
        &self.found.info
    }

    /// How far KASLR has moved the kernel from where it was linked.
    pub(crate) fn moved(&self) -> u64 {
        let offset = self.found.info.text("KERNELOFFSET").unwrap_or_default();
        u64::from_str_radix(offset, 16).unwrap_or(0)
    }

    /// The kernel's BTF, from `__start_BTF` to `__stop_BTF`.
    pub(crate) fn btf(&self, start: u64, stop: u64) -> Result<&[u8], AttachError> {
        let bytes = stop.saturating_sub(start).min(BTF_BYTES_MAX);
        let btf = self.image()?.at(start, bytes as usize);
        btf.ok_or(AttachError::Image {
            address: Gva(start),
        })
    }

    fn identity(&self) -> Identity {
        Identity {
            release: self.release().to_owned(),
            build_id: self.build_id().map(str::to_owned),
        }
    }

    pub(crate) fn image(&self) -> Result<Image<'_>, AttachError> {
        if self.image.get().is_none() {
            let space = Space::new(self.mem, self.found.table);
            let image = MappedImage::at(&space, self.found.stext);
            let image = image.ok_or(AttachError::Image {
                address: self.found.stext,
            })?;
            let _ = self.image.set(image.read(self.mem)?);
        }
        Ok(Image {
            base: self.found.stext.0,
            bytes: self.image.get().map_or(&[], Vec::as_slice),
        })
    }

    /// The kernel as a profile describes it, where the guest does not contradict it.
    pub(crate) fn kernel(&self, profile: Profile) -> Result<Kernel<'m>, AttachError> {
        let found = &self.found;
        if profile.recording().structs.is_empty() {
            return Err(AttachError::NoBtf);
        }
        let layouts = Layouts::resolve(&profile)?;
        agrees_with_vmcoreinfo(&layouts, &found.info)?;
        let symbol = |name: &'static str| {
            let address = profile.address(name, found.stext.0);
            address.map(Gva).ok_or(AttachError::Symbol(name))
        };
        let mut space = Space::new(self.mem, found.table);
        if let Ok(banner) = symbol("linux_banner") {
            let expected = format!("Linux version {} ", self.release());
            let text = space.string(banner, expected.len()).unwrap_or_default();
            if text != expected {
                return Err(AttachError::Contradiction("symbol linux_banner".into()));
            }
        }
        let variable = |space: &Space<'_>, name| {
            let value = space.u64(symbol(name)?);
            value.map_err(|_| AttachError::Contradiction(format!("symbol {name}")))
        };
        space.use_direct_map(variable(&space, "page_offset_base")?);
        let kernel = Kernel {
            info: KernelInfo {
                release: self.release().to_owned(),
                build_id: self.build_id().map(str::to_owned),
                stext: found.stext.0,
                phys_base: found.phys_base,
                page_table_levels: found.table.levels,
            },
            vmemmap: Gva(variable(&space, "vmemmap_base")?),
            super_blocks: symbol("super_blocks")?,
            btf_modules: symbol("btf_modules").ok(),
            space,
            layouts,
            profile,
            origin: ProfileOrigin::GuestMemory,
            profile_problem: None,
        };
        kernel.leads_somewhere()?;
        Ok(kernel)
    }
}

/// Sizes, offsets and flags that VMCOREINFO tells have to be the profile's.
fn agrees_with_vmcoreinfo(layouts: &Layouts, info: &Vmcoreinfo) -> Result<(), AttachError> {
    let Layouts {
        page, list_head, ..
    } = layouts;
    let bit = |number: i64| 1u64.checked_shl(u32::try_from(number).ok()?);
    let told = |key: &str| info.text(key)?.parse::<u64>().ok();
    let checks = [
        ("SIZE(page)", Some(page.size.into())),
        ("OFFSET(page.flags)", Some(page.flags.offset.into())),
        ("OFFSET(page.mapping)", Some(page.mapping.offset.into())),
        ("OFFSET(page.private)", Some(page.private.offset.into())),
        ("SIZE(list_head)", Some(list_head.size.into())),
        ("OFFSET(list_head.next)", Some(list_head.next.offset.into())),
        ("OFFSET(list_head.prev)", Some(list_head.prev.offset.into())),
        ("NUMBER(PG_head_mask)", Some(layouts.page_flags.head)),
    ];
    for (key, of_profile) in checks {
        if told(key).is_some_and(|told| Some(told) != of_profile) {
            return Err(AttachError::Contradiction(format!("the profile's {key}")));
        }
    }
    let private = info.number("PG_private").and_then(bit);
    if private.is_some_and(|told| told != layouts.page_flags.private) {
        return Err(AttachError::Contradiction(
            "the profile's PG_private".into(),
        ));
    }
    Ok(())
}

impl Kernel<'_> {
    /// The variables and the list that every walk begins at are what they are said to be.
    fn leads_somewhere(&self) -> Result<(), AttachError> {
        // A frame that is RAM for sure.
        let pfn = self.space.table().root.pfn().0;
        let page = pfn.checked_mul(self.layouts.page.size.into());
        let page = page.map(|offset| self.vmemmap.offset(offset));
        if page.and_then(|page| self.space.translate(page)).is_none() {
            return Err(AttachError::Contradiction("symbol vmemmap_base".into()));
        }
        let head = self.super_blocks;
        let links_back = |_| {
            self.space.forget();
            let first = self.pointer(head, self.layouts.list_head.next);
            let back = first.and_then(|first| self.pointer(first, self.layouts.list_head.prev));
            back == Ok(head)
        };
        if !(0..LIST_TRIES).any(links_back) {
            return Err(AttachError::Contradiction("symbol super_blocks".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockGuest;

    #[test]
    fn types_that_vmcoreinfo_contradicts_are_refused() {
        let layouts = MockGuest::new().layouts;
        let agrees = |text: &str| agrees_with_vmcoreinfo(&layouts, &Vmcoreinfo::parse(text));
        let private = layouts.page_flags.private.trailing_zeros();
        let head = layouts.page_flags.head;
        let truth = format!(
            "SIZE(page)=64\nOFFSET(page.mapping)=24\nNUMBER(PG_private)={private}\n\
             NUMBER(PG_head_mask)={head}\nSIZE(zone)=1\n"
        );
        assert!(agrees("").is_ok(), "what is not told cannot contradict");
        assert!(agrees(&truth).is_ok());
        for (key, lie) in [
            ("SIZE(page)=64", "SIZE(page)=72"),
            ("OFFSET(page.mapping)=24", "OFFSET(page.mapping)=32"),
            ("NUMBER(PG_private)=", "NUMBER(PG_private)=1"),
            ("NUMBER(PG_head_mask)=", "NUMBER(PG_head_mask)=9"),
        ] {
            let error = agrees(&truth.replace(key, lie)).unwrap_err();
            assert!(matches!(error, AttachError::Contradiction(_)), "{error}");
        }
    }
}
