//! Profiles from files: what a distribution ships of a kernel, and what other tools made of it. A file
//! is recognised by its content, never by its name; several are read together, since a kernel's types
//! are in one, its modules' in others and its symbols maybe in a third.

mod compress;
mod dwarf;
mod elf;
mod vmlinuz;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use compress::{CompressError, xz};
pub use elf::ElfError;
pub use vmlinuz::VmlinuzError;

use crate::btf::{Btf, BtfError};
use crate::image::Image;
use crate::isf::{Isf, IsfError};
use crate::kallsyms::Kallsyms;
use crate::layout::{Layouts, MissingFields};
use crate::profile::{Identity, Profile, ProfileError, SYMBOLS};
use crate::types::{Layers, Recording, Types};
use elf::ElfFile;

const BTF_MAGIC: [u8; 2] = 0xeb9f_u16.to_le_bytes();
const BANNER: &str = "linux_banner";
const BANNER_START: &str = "Linux version ";
const BANNER_BYTES_MAX: usize = 512;
/// Nested compression and containers: an ELF in a vmlinuz, a module in .ko.xz.
const DEPTH_MAX: usize = 3;

/// Why files make no profile.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error(
        "{0} is of no known kind: expected vmlinux, a module or the debug file of either, vmlinuz, \
         BTF, System.map, ISF or a profile"
    )]
    Unknown(PathBuf),
    #[error("cannot read {0}")]
    Elf(PathBuf, #[source] ElfError),
    #[error("cannot read the debug information of {0}")]
    Dwarf(PathBuf, #[source] gimli::Error),
    #[error("cannot read {0}")]
    Vmlinuz(PathBuf, #[source] VmlinuzError),
    #[error("cannot decompress {0}")]
    Compressed(PathBuf, #[source] CompressError),
    #[error("cannot read the BTF of {0}")]
    Btf(PathBuf, #[source] BtfError),
    #[error("cannot read {0}")]
    Isf(PathBuf, #[source] IsfError),
    #[error("cannot read {0}")]
    Profile(PathBuf, #[source] ProfileError),
    #[error("{0} is BTF of a module: name its kernel's too (/sys/kernel/btf/vmlinux)")]
    NoBase(PathBuf),
    #[error("{0} describes no types: it has neither debug information nor BTF")]
    NoTypes(PathBuf),
    #[error(
        "{0} lists no kernel's symbols, _stext is not among them. Debian's System.map beside vmlinuz is a stub; \
         the real one is usr/lib/debug/boot/System.map-RELEASE of package linux-image-RELEASE-dbg"
    )]
    SystemMap(PathBuf),
    #[error("the files are of different kernels: {0} and {1}")]
    DifferentKernels(String, String),
    #[error("the files do not tell the kernel's release: give it (uname -r)")]
    NoRelease,
    #[error(
        "none of the files has the kernel's symbols and its banner: name its vmlinuz or vmlinux"
    )]
    NoSymbols,
    #[error("the files do not describe all that is needed of a kernel")]
    MissingFields(#[from] MissingFields),
    #[error("none of the files has the BTF of a kernel, which ISF is made from")]
    NoBtf,
}

/// What files told, put together.
#[derive(Default)]
pub struct Files<'a> {
    /// uname -r, and the build id of the kernel itself.
    pub release: Option<String>,
    pub build_id: Option<String>,
    kernel_btf: Option<(PathBuf, Cow<'a, [u8]>)>,
    module_btf: Vec<(PathBuf, Cow<'a, [u8]>)>,
    kernel: Vec<Recording>,
    modules: Vec<Recording>,
    symbols: BTreeMap<String, u64>,
    banner: Option<Vec<u8>>,
}

impl<'a> Files<'a> {
    /// Takes in a file.
    ///
    /// # Errors
    /// When it is of no known kind, damaged, or of another kernel than one before.
    pub fn add(&mut self, path: &Path, bytes: Cow<'a, [u8]>) -> Result<(), SourceError> {
        self.add_content(path, bytes, DEPTH_MAX)
    }

    fn add_content(
        &mut self,
        path: &Path,
        bytes: Cow<'a, [u8]>,
        depth: usize,
    ) -> Result<(), SourceError> {
        let at = || path.to_owned();
        if depth > 0 && compress::is_compressed(&bytes) {
            let inner = compress::decompress(&bytes);
            let inner = inner.map_err(|error| SourceError::Compressed(at(), error))?;
            return self.add_content(path, inner.into(), depth - 1);
        }
        if depth > 0 && vmlinuz::is_vmlinuz(&bytes) {
            let inner = vmlinuz::vmlinux(&bytes);
            let inner = inner.map_err(|error| SourceError::Vmlinuz(at(), error))?;
            return self.add_content(path, inner.into(), depth - 1);
        }
        if bytes.starts_with(b"\x7fELF") {
            return self.add_elf(path, &bytes);
        }
        if bytes.starts_with(&BTF_MAGIC) {
            return self.add_btf(path, bytes);
        }
        if bytes.trim_ascii_start().starts_with(b"{") {
            return self.add_json(path, &bytes);
        }
        match system_map(&bytes) {
            Some(symbols) if symbols.contains_key("_stext") => self.symbols.extend(symbols),
            Some(_) => return Err(SourceError::SystemMap(at())),
            None => return Err(SourceError::Unknown(at())),
        }
        Ok(())
    }

    fn add_elf(&mut self, path: &Path, bytes: &[u8]) -> Result<(), SourceError> {
        let elf_error = |error| SourceError::Elf(path.to_owned(), error);
        let file = ElfFile::parse(bytes).map_err(elf_error)?;
        let debug = file.debug_sections().map_err(elf_error)?;
        let btf = file.section(".BTF").map_err(elf_error)?;
        if debug.is_none() && btf.is_none() {
            return Err(SourceError::NoTypes(path.to_owned()));
        }
        if file.is_relocatable() {
            let modinfo = file.section(".modinfo").map_err(elf_error)?;
            self.is_of(modinfo.as_deref().and_then(vermagic_release))?;
        } else {
            self.add_kernel(&file)?;
        }
        if let Some(debug) = debug {
            let recording = dwarf::record(&debug, &Layouts::names())
                .map_err(|error| SourceError::Dwarf(path.to_owned(), error))?;
            if file.is_relocatable() {
                self.modules.push(recording);
            } else {
                self.kernel.push(recording);
            }
        }
        if let Some(btf) = btf {
            self.add_btf(path, btf.into_owned().into())?;
        }
        Ok(())
    }

    /// What a vmlinux tells besides its types.
    fn add_kernel(&mut self, file: &ElfFile<'_>) -> Result<(), SourceError> {
        self.build_id = file.build_id().or(self.build_id.take());
        let mut symbols = file.symbols();
        if let Some((base, bytes)) = file.image() {
            let image = Image {
                base,
                bytes: &bytes,
            };
            if symbols.is_empty()
                && let Ok(kallsyms) = Kallsyms::find(image, None)
            {
                symbols.extend(kallsyms.symbols());
            }
            let banner = symbols.get(BANNER).and_then(|&at| image.from(at));
            let banner = banner
                .and_then(|bytes| bytes.iter().position(|&b| b == 0).map(|end| &bytes[..end]));
            if let Some(banner) = banner.filter(|banner| banner.len() <= BANNER_BYTES_MAX) {
                self.is_of(banner_release(&String::from_utf8_lossy(banner)))?;
                self.banner = Some(banner.to_owned());
            }
        }
        self.symbols.extend(symbols);
        Ok(())
    }

    fn add_btf(&mut self, path: &Path, bytes: Cow<'a, [u8]>) -> Result<(), SourceError> {
        if Btf::is_split(&bytes) {
            self.module_btf.push((path.to_owned(), bytes));
        } else {
            self.kernel_btf = Some((path.to_owned(), bytes));
        }
        Ok(())
    }

    fn add_json(&mut self, path: &Path, json: &[u8]) -> Result<(), SourceError> {
        match Profile::parse(json) {
            Ok(profile) => {
                self.is_of(Some(profile.kernel.release.clone()))?;
                self.build_id = self.build_id.take().or(profile.kernel.build_id.clone());
                let linked = |name: &str| Some((name.to_owned(), profile.link_address(name)?));
                self.symbols.extend(SYMBOLS.into_iter().filter_map(linked));
                self.kernel.push(profile.recording().clone());
                return Ok(());
            }
            Err(ProfileError::NotAProfile(_) | ProfileError::TooLarge(_)) => {}
            Err(error) => return Err(SourceError::Profile(path.to_owned(), error)),
        }
        let isf = Isf::parse(json).map_err(|error| SourceError::Isf(path.to_owned(), error))?;
        self.is_of(isf.banner().as_deref().and_then(banner_release))?;
        let symbol = |name: &str| Some((name.to_owned(), isf.symbol(name)?));
        self.symbols.extend(SYMBOLS.into_iter().filter_map(symbol));
        self.kernel.push(Layouts::record(&isf));
        Ok(())
    }

    /// All files have to be of one kernel.
    fn is_of(&mut self, release: Option<String>) -> Result<(), SourceError> {
        match (&self.release, release) {
            (Some(one), Some(other)) if *one != other => {
                Err(SourceError::DifferentKernels(one.clone(), other))
            }
            (None, release) => {
                self.release = release;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Puts the files together.
    ///
    /// # Errors
    /// When they lack what every profile has to have.
    pub fn profile(&self) -> Result<Profile, SourceError> {
        let base = self.base()?;
        let splits = self.splits(base.as_ref())?;
        let mut layers: Vec<&dyn Types> = Vec::new();
        layers.extend(self.modules.iter().map(|types| types as &dyn Types));
        layers.extend(splits.iter().map(|types| types as &dyn Types));
        layers.extend(self.kernel.iter().map(|types| types as &dyn Types));
        layers.extend(base.iter().map(|types| types as &dyn Types));
        let types = Layers(layers);
        Layouts::resolve(&types)?;
        let kernel = Identity {
            release: self.release.clone().ok_or(SourceError::NoRelease)?,
            build_id: self.build_id.clone(),
        };
        let symbol = |name: &str| self.symbols.get(name).copied();
        Ok(Profile::new(kernel, &types, 0, symbol))
    }

    /// All types and symbols as Volatility 3 has them, in JSON.
    ///
    /// # Errors
    /// When there is no BTF of a kernel, or no symbols.
    pub fn isf(&self) -> Result<String, SourceError> {
        let base = self.base()?.ok_or(SourceError::NoBtf)?;
        let banner = self.banner.as_deref().ok_or(SourceError::NoSymbols)?;
        let splits = self.splits(Some(&base))?;
        let symbols = self.symbols.iter().map(|(name, &at)| (name.clone(), at));
        Ok(Isf::new(&base, &splits, symbols, banner).to_json())
    }

    fn base(&self) -> Result<Option<Btf<'_>>, SourceError> {
        match &self.kernel_btf {
            Some((path, bytes)) => Btf::parse(bytes)
                .map(Some)
                .map_err(|error| SourceError::Btf(path.clone(), error)),
            None => Ok(None),
        }
    }

    fn splits<'b>(&'b self, base: Option<&'b Btf<'b>>) -> Result<Vec<Btf<'b>>, SourceError> {
        let parse = |(path, bytes): &'b (PathBuf, Cow<'a, [u8]>)| {
            let base = base.ok_or_else(|| SourceError::NoBase(path.clone()))?;
            Btf::parse_split(bytes, base).map_err(|error| SourceError::Btf(path.clone(), error))
        };
        self.module_btf.iter().map(parse).collect()
    }
}

/// Bytes from the start of a file that tell whether it is of a kernel.
pub const KIND_BYTES: u64 = 4096;

/// Whether a file that begins so is one that [`Files::add`] takes, and no dump of a guest's memory.
pub fn is_of_kernel(start: &[u8]) -> bool {
    if start.starts_with(b"\x7fELF") {
        return !elf::is_core(start);
    }
    let first_line = start
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or_default();
    compress::is_compressed(start)
        || vmlinuz::is_vmlinuz(start)
        || start.starts_with(&BTF_MAGIC)
        || start.trim_ascii_start().starts_with(b"{")
        || system_map(first_line).is_some()
}

/// Lines of address, letter and name; None when it is something else.
fn system_map(bytes: &[u8]) -> Option<BTreeMap<String, u64>> {
    let text = str::from_utf8(bytes).ok()?;
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let _letter = words.next().filter(|letter| letter.len() == 1)?;
        Some((words.next()?.to_owned(), address))
    };
    let symbols: Option<BTreeMap<_, _>> = text.lines().map(line).collect();
    symbols.filter(|symbols| !symbols.is_empty())
}

/// "Linux version 6.1.0-10-amd64 (…) …"
fn banner_release(banner: &str) -> Option<String> {
    let release = banner.strip_prefix(BANNER_START)?.split(' ').next()?;
    (!release.is_empty()).then(|| release.to_owned())
}

/// "vermagic=6.1.0-10-amd64 SMP …" among a module's NUL-terminated strings.
fn vermagic_release(modinfo: &[u8]) -> Option<String> {
    let mut strings = modinfo.split(|&byte| byte == 0);
    let vermagic = strings.find_map(|string| string.strip_prefix(b"vermagic="))?;
    let release = str::from_utf8(vermagic).ok()?.split(' ').next()?;
    Some(release.to_owned())
}

#[cfg(test)]
mod tests;
