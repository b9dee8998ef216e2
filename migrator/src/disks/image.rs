//! What holds a disk's bytes and how they are read: a raw file or device past the page cache, an NBD
//! export, or, for every other format, a `qemu-nbd` of our own. Nothing here ever writes.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use san_io::{Disk, DiskError, NbdUri};

use crate::disks::qemu_nbd::{QemuNbd, ServeError};

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A local file or device whose bytes are the disk's.
    Raw(PathBuf),
    Nbd(NbdUri),
    /// What only QEMU can read.
    Qemu {
        /// QEMU's name of the format: `qcow2`, `raw`, `luks`.
        driver: String,
        /// As QEMU takes it: a path, a URL, or json:{…}.
        filename: String,
    },
}

/// An image opened for reading. Its server, if it has one of its own, lives as long as this.
#[derive(Debug)]
pub struct Opened {
    pub disk: Disk,
    pub server: Option<QemuNbd>,
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Image {
    /// From QEMU's `drv` and `filename`; relative paths are relative to the folder of the QEMU `pid`.
    pub fn of_qemu(driver: &str, filename: &str, pid: Option<i32>) -> Image {
        let is_plain = matches!(driver, "raw" | "file" | "host_device");
        let driver = driver.to_owned();
        if is_plain && let Ok(uri) = filename.parse() {
            return Image::Nbd(uri);
        }
        if filename.is_empty() || has_protocol(filename) {
            let filename = filename.to_owned();
            return Image::Qemu { driver, filename };
        }
        let folder = pid.and_then(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).ok());
        let path = folder.unwrap_or_default().join(filename);
        if is_plain {
            return Image::Raw(path);
        }
        let filename = path.to_string_lossy().into_owned();
        Image::Qemu { driver, filename }
    }

    /// QEMU's name of the format.
    pub fn format(&self) -> &str {
        match self {
            Image::Raw(_) | Image::Nbd(_) => "raw",
            Image::Qemu { driver, .. } => driver,
        }
    }

    /// Opens it; `program` is the `qemu-nbd` for what only QEMU can read. Blocks, but not for longer
    /// than some 10 s unless a file system hangs.
    pub fn open(&self, program: &Path) -> Result<Opened, OpenError> {
        let (disk, server) = match self {
            Image::Raw(path) => (Disk::open(path)?, None),
            Image::Nbd(uri) => (Disk::connect(uri)?, None),
            Image::Qemu { driver, filename } => {
                let (server, disk) = QemuNbd::serve(program, driver, filename)?;
                (disk, Some(server))
            }
        };
        Ok(Opened { disk, server })
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Image::Raw(path) => write!(f, "{}", path.display()),
            Image::Nbd(uri) => write!(f, "{uri}"),
            Image::Qemu { filename, .. } => f.write_str(filename),
        }
    }
}

/// json:{…}, nbd://…, rbd:… are no paths; a path with a colon is given as ./a:b or /a:b.
pub(super) fn has_protocol(filename: &str) -> bool {
    let head = filename.split(['/', '.']).next();
    head.is_some_and(|head| head.contains(':'))
}

/// `--disk NAME=IMAGE`: what holds the disk that the guest calls NAME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenDisk {
    /// The guest kernel's name, such as `vda`.
    pub name: String,
    /// None leaves the disk to the LAN.
    pub image: Option<Image>,
}

impl FromStr for GivenDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<GivenDisk, String> {
        const EXPECTED: &str = "expected NAME=PATH, such as vda=/dev/vg/vm, NAME=nbd://HOST/EXPORT, \
                                NAME=nbd+unix:///EXPORT?socket=PATH or NAME=none";
        let (name, place) = text.split_once('=').ok_or(EXPECTED)?;
        if name.is_empty() || place.is_empty() {
            return Err(EXPECTED.into());
        }
        let image = match place {
            "none" => None,
            uri if NbdUri::is_uri(uri) => {
                Some(Image::Nbd(uri.parse().map_err(|error| format!("{error}"))?))
            }
            path => Some(Image::Raw(path.into())),
        };
        let name = name.to_owned();
        Ok(GivenDisk { name, image })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu(driver: &str, filename: &str) -> Image {
        let (driver, filename) = (driver.to_owned(), filename.to_owned());
        Image::Qemu { driver, filename }
    }

    #[test]
    fn only_plain_local_files_are_raw() {
        let image = |driver, filename| Image::of_qemu(driver, filename, None);
        assert_eq!(image("raw", "/dev/vg/vm"), Image::Raw("/dev/vg/vm".into()));
        assert_eq!(image("file", "/a:b/disk"), Image::Raw("/a:b/disk".into()));
        assert_eq!(image("qcow2", "/d.qcow2"), qemu("qcow2", "/d.qcow2"));
        let nbd = "nbd://host/export";
        assert_eq!(image("raw", nbd), Image::Nbd(nbd.parse().unwrap()));
        assert_eq!(image("qcow2", nbd), qemu("qcow2", nbd));
        let json = "json:{\"driver\": \"raw\", \"offset\": 512}";
        assert_eq!(image("raw", json), qemu("raw", json));
        assert_eq!(image("raw", ""), qemu("raw", ""));
    }

    #[test]
    fn a_relative_path_is_relative_to_qemu() {
        let pid = Some(std::process::id() as i32);
        let path = std::env::current_dir().unwrap().join("disk.img");
        let filename = path.to_str().unwrap();
        assert_eq!(
            Image::of_qemu("raw", "disk.img", pid),
            Image::Raw(path.clone())
        );
        assert_eq!(
            Image::of_qemu("qcow2", "disk.img", pid),
            qemu("qcow2", filename)
        );
    }

    #[test]
    fn an_operator_names_a_path_an_export_or_nothing() {
        let image = |text: &str| text.parse::<GivenDisk>().map(|given| given.image);
        assert_eq!(image("vda=/a=b"), Ok(Some(Image::Raw("/a=b".into()))));
        assert_eq!(image("vda=none"), Ok(None));
        let uri = "nbd+unix:///x?socket=/s";
        let nbd = Image::Nbd(uri.parse().unwrap());
        assert_eq!(image(&format!("vda={uri}")), Ok(Some(nbd)));
        assert!(image("vda=nbds://h/x").unwrap_err().contains("TLS"));
        for nothing in ["vda", "vda=", "=/x"] {
            assert!(image(nothing).unwrap_err().contains("NAME=PATH"));
        }
    }
}
