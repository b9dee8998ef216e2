//! The profile directory: profiles by build id, so that a kernel that was met before needs no
//! look at its types. A cache, never an authority: what cannot be read counts as absent, and files
//! appear whole or not at all.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::profile::{PROFILE_BYTES_MAX, Profile, ProfileError};

/// Hexadecimal digits of a build id: SHA-1 has 40. Others are no file names.
const BUILD_ID_DIGITS: std::ops::RangeInclusive<usize> = 16..=128;

/// Why a profile could not be loaded or saved.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("{0} is no profile to use")]
    Bad(PathBuf, #[source] ProfileError),
    #[error("{0} is the profile of another kernel build")]
    OtherBuild(PathBuf),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error("a kernel without a build id has no place in the profile directory")]
    NoBuildId,
}

/// A folder of profiles.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// `$XDG_CACHE_HOME/pct-vmi/profiles`, by default under `~/.cache`; None where there is neither.
    pub fn open_default() -> Option<Store> {
        let absolute = |name: &str| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let cache =
            absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Store::open(&cache.join("pct-vmi/profiles")))
    }

    /// A folder, which is made when something is saved.
    pub fn open(folder: &Path) -> Store {
        Store {
            folder: folder.to_owned(),
        }
    }

    /// The profile of a kernel build; None where there is none.
    ///
    /// # Errors
    /// When there is a file that is not it. The caller warns and derives the profile anew, which
    /// replaces the file.
    pub fn load(&self, build_id: &str) -> Result<Option<Profile>, StoreError> {
        let Some(path) = self.path(build_id) else {
            return Ok(None);
        };
        if !path.exists() {
            return Ok(None);
        }
        let profile = read(&path)?;
        if profile.kernel.build_id.as_deref() != Some(build_id) {
            return Err(StoreError::OtherBuild(path));
        }
        Ok(Some(profile))
    }

    /// All profiles, those saved last first: what a guest may run before it has told what it runs.
    pub fn newest_first(&self) -> impl Iterator<Item = Profile> + use<> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .collect();
        files.sort_unstable_by(|one, other| other.cmp(one));
        files.into_iter().filter_map(|(_, path)| read(&path).ok())
    }

    /// Keeps a profile; returns its file.
    ///
    /// # Errors
    /// When it has no build id or the file cannot be written.
    pub fn save(&self, profile: &Profile) -> Result<PathBuf, StoreError> {
        let build_id = profile.kernel.build_id.as_deref().unwrap_or_default();
        let path = self.path(build_id).ok_or(StoreError::NoBuildId)?;
        let made = fs::create_dir_all(&self.folder);
        match made.and_then(|()| write_whole(&path, profile.to_json().as_bytes())) {
            Ok(()) => Ok(path),
            Err(error) => Err(StoreError::Write(path, error)),
        }
    }

    /// A guest tells its build id: only digits become a file name.
    fn path(&self, build_id: &str) -> Option<PathBuf> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_build_id = BUILD_ID_DIGITS.contains(&build_id.len()) && build_id.bytes().all(is_hex);
        is_build_id.then(|| self.folder.join(format!("{build_id}.json")))
    }
}

/// Reads a profile from a file that the user names.
///
/// # Errors
/// When it cannot be read or is no profile.
pub fn read(path: &Path) -> Result<Profile, StoreError> {
    let failed = |error| StoreError::Read(path.to_owned(), error);
    let file = fs::File::open(path).map_err(failed)?;
    let mut json = Vec::new();
    // One more, so that a file that is too large shows.
    file.take(PROFILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut json)
        .map_err(failed)?;
    Profile::parse(&json).map_err(|error| StoreError::Bad(path.to_owned(), error))
}

/// Writes a file so that it appears whole or not at all.
///
/// # Errors
/// When it cannot be written; what was there before is then still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that is reported is the first.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
