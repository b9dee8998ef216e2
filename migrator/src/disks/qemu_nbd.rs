//! A `qemu-nbd` of our own that reads what only QEMU can, read-only and past the page cache, while
//! another QEMU may have the image open. Nobody else can reach it, and it ends with us.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use san_io::{Disk, DiskError, NbdError, NbdUri};
use serde_json::{Value, json};
use thiserror::Error;

use super::image::has_protocol;

/// Opening an image of a remote protocol takes its round trips. Too short: a slow one is not used;
/// too long: the migration begins that much later where it hangs.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// As many as san-io makes at most: the server refuses more.
const CLIENTS_MAX: &str = "4";

/// Where `qemu-nbd` is, for the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct QemuNbdArgs {
    /// The program that reads disks in qcow2 and the other formats that only QEMU reads.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-nbd")]
    pub qemu_nbd: PathBuf,
}

/// A server and what it serves. It ends when its last client leaves, so also when this process is
/// killed, and at the latest when this is dropped.
#[derive(Debug)]
pub struct QemuNbd(Child);

/// Why there is no server.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error(
        "cannot start {program}, which reads disks of format {driver}: install it (Debian: \
         qemu-utils, Fedora: qemu-img) or name it with --qemu-nbd"
    )]
    Absent {
        program: PathBuf,
        driver: String,
        source: io::Error,
    },
    #[error("no private folder for qemu-nbd's socket: is TMPDIR writable?")]
    Folder(#[source] io::Error),
    #[error("qemu-nbd cannot read {filename} ({driver}): {said}")]
    Refused {
        driver: String,
        filename: String,
        said: String,
    },
    #[error("qemu-nbd does not serve {filename}")]
    Silent { filename: String, source: DiskError },
}

impl QemuNbd {
    /// Starts `program` for an image that QEMU opened with `driver` and `filename`, and connects.
    pub(super) fn serve(
        program: &Path,
        driver: &str,
        filename: &str,
    ) -> Result<(QemuNbd, Disk), ServeError> {
        // Only its owner can look inside; gone as soon as we are connected.
        let folder = tempfile::Builder::new()
            .prefix("pct-vmi-")
            .tempdir()
            .map_err(ServeError::Folder)?;
        let (socket, log) = (folder.path().join("nbd"), folder.path().join("log"));
        let stderr = File::create(&log).map_err(ServeError::Folder)?;
        let mut command = Command::new(program);
        command
            .args(["--read-only", "--cache=none", "--shared", CLIENTS_MAX])
            .arg("--socket")
            .arg(&socket)
            .args(image_arguments(driver, filename))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            // Ctrl-C on our terminal is for us.
            .process_group(0);
        let child = command.spawn().map_err(|source| ServeError::Absent {
            program: program.to_owned(),
            driver: driver.to_owned(),
            source,
        });
        let mut server = QemuNbd(child?);
        let filename = filename.to_owned();
        match server.connect(socket) {
            Ok(disk) => Ok((server, disk)),
            Err(Some(source)) => Err(ServeError::Silent { filename, source }),
            Err(None) => {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(ServeError::Refused {
                    driver: driver.to_owned(),
                    filename,
                    said: said.trim().to_owned(),
                })
            }
        }
    }

    /// Waits until the server listens; None when it has ended.
    fn connect(&mut self, socket: PathBuf) -> Result<Disk, Option<DiskError>> {
        let uri = NbdUri::of_socket(socket);
        let until = Instant::now() + START_TIME_MAX;
        loop {
            match Disk::connect(&uri) {
                Ok(disk) => return Ok(disk),
                Err(error) => {
                    if matches!(self.0.try_wait(), Ok(Some(_))) {
                        return Err(None);
                    }
                    let not_yet = matches!(
                        error,
                        DiskError::Nbd {
                            source: NbdError::Io(_),
                            ..
                        }
                    );
                    if !not_yet || Instant::now() > until {
                        return Err(Some(error));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // One that hangs at its storage is not waited for; it ends when that answers.
        let until = Instant::now() + Duration::from_millis(200);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// force-share lets QEMU open what another QEMU has locked for writing. It has to be an option of the
/// image, which is why a path becomes json:{…}; protocols have no locks.
fn image_arguments(driver: &str, filename: &str) -> Vec<String> {
    let options = match filename.strip_prefix("json:").map(serde_json::from_str) {
        Some(Ok(Value::Object(mut options))) => {
            options.insert("force-share".into(), json!(true));
            Value::Object(options)
        }
        _ if has_protocol(filename) => {
            let format = format!("--format={driver}");
            return vec![format, "--".into(), filename.to_owned()];
        }
        _ => json!({ "driver": driver, "force-share": true, "file": { "filename": filename } }),
    };
    vec!["--".into(), format!("json:{options}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_opened_as_qemu_has_it_and_shared() {
        let path = image_arguments("qcow2", "/a,b.qcow2");
        let options: Value = serde_json::from_str(path[1].strip_prefix("json:").unwrap()).unwrap();
        let file = json!({ "filename": "/a,b.qcow2" });
        let expected = json!({ "driver": "qcow2", "force-share": true, "file": file });
        assert_eq!(options, expected);
        let url = image_arguments("raw", "iscsi://san/iqn.x/1");
        assert_eq!(url, ["--format=raw", "--", "iscsi://san/iqn.x/1"]);
        let json = image_arguments("raw", r#"json:{"driver":"raw","file":{"driver":"iscsi"}}"#);
        let options: Value = serde_json::from_str(json[1].strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(options["force-share"], true);
        assert_eq!(options["file"]["driver"], "iscsi");
    }

    #[test]
    fn a_missing_program_and_one_that_ends_are_told_apart() {
        let serve = |program: &str| {
            let error = QemuNbd::serve(Path::new(program), "qcow2", "/x.qcow2").unwrap_err();
            error.to_string()
        };
        let absent = serve("/nowhere/qemu-nbd");
        assert!(
            absent.contains("--qemu-nbd") && absent.contains("qcow2"),
            "{absent}"
        );
        let refused = serve("false");
        assert!(refused.contains("cannot read /x.qcow2"), "{refused}");
    }
}
