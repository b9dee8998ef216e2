//! A scan as tables for people and as JSON lines for programs. Only shows: every figure comes from
//! the scan.

use std::collections::BTreeMap;
use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use vmi::{DiskPath, FilesystemCounts, PAGE_BYTES, ProfileOrigin, Reason, Scan};

use crate::cmd::scan::Backing;
use crate::cmd::scan::verify::Verified;
use crate::vm::Vm;

/// What there is to show.
pub(crate) struct Report<'a> {
    pub(crate) vm: &'a Vm,
    pub(crate) scan: &'a Scan,
    /// For each of the scan's disks.
    pub(crate) backings: &'a [Backing],
    pub(crate) verified: Option<&'a Verified>,
}

impl Report<'_> {
    /// Tables for people.
    pub(crate) fn text(&self) -> String {
        let parts = [
            self.kernel(),
            self.ram(),
            self.disks(),
            self.filesystems(),
            self.files(),
            self.timing(),
            self.verification(),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.join("\n")
    }

    fn kernel(&self) -> Option<String> {
        let kernel = &self.scan.kernel;
        let build_id = kernel
            .build_id
            .as_ref()
            .map_or(String::new(), |id| format!(", build {id}"));
        let origin = origin(self.scan.profile_origin);
        let problem = self.scan.profile_problem.as_ref();
        let problem = problem.map_or(String::new(), |problem| format!(" ({problem})"));
        Some(format!(
            "Linux {}{build_id}\n_stext at {:#x}, phys_base {}, {}-level page tables, \
             profile {origin}{problem}\n",
            kernel.release,
            kernel.stext,
            signed_hex(kernel.phys_base),
            kernel.page_table_levels
        ))
    }

    fn ram(&self) -> Option<String> {
        let mut table = table(&["GUEST PHYSICAL", "SIZE", "RAM BLOCK", "OFFSET"], &[1, 3]);
        let layout = match self.vm {
            Vm::Live(vm) => Some(&vm.layout),
            Vm::Dump(_) | Vm::Connector(_) => None,
        };
        for range in self.vm.memory().ranges() {
            let block = layout.map_or("-", |layout| layout.blocks[range.block].name.as_str());
            table.add_row([
                format!("{:#x}-{:#x}", range.gpa, range.gpa + range.bytes - 1),
                bytes(range.bytes),
                block.to_owned(),
                format!("{:#x}", range.offset),
            ]);
        }
        let source = match self.vm {
            Vm::Live(vm) if vm.mapped_bytes == vm.layout.ram_bytes() => "mapping".to_owned(),
            Vm::Live(vm) if vm.mapped_bytes > 0 => {
                format!(
                    "mapping ({}), the rest by process_vm_readv",
                    bytes(vm.mapped_bytes)
                )
            }
            Vm::Live(_) => "process_vm_readv".to_owned(),
            Vm::Dump(_) => "dump file".to_owned(),
            Vm::Connector(_) => "memflow-kvm".to_owned(),
        };
        Some(format!("{table}\nread by {source}\n"))
    }

    fn disks(&self) -> Option<String> {
        let columns = ["DISK", "PATH", "SIZE", "FORMAT", "BACKING FILE"];
        let mut table = table(&columns, &[2]);
        for (disk, backing) in self.scan.disks.iter().zip(self.backings) {
            let (format, file) = match backing {
                Ok(image) => (image.format().to_owned(), image.to_string()),
                Err(why) => ("-".to_owned(), format!("none: {why}")),
            };
            let path = disk.path.as_ref().map_or("-".into(), DiskPath::to_string);
            table.add_row([disk.name.clone(), path, bytes(disk.bytes), format, file]);
        }
        (!self.scan.disks.is_empty()).then(|| format!("{table}\n"))
    }

    fn filesystems(&self) -> Option<String> {
        let columns = [
            "FILE SYSTEM",
            "DEVICE",
            "FILES",
            "CACHED",
            "RESTORABLE",
            "",
            "NOT RESTORABLE",
        ];
        let mut table = table(&columns, &[2, 3, 4, 5]);
        let mut row = |fs: &str, device: &str, counts: &FilesystemCounts| {
            table.add_row([
                fs.to_owned(),
                device.to_owned(),
                thousands(counts.files),
                thousands(counts.cached_pages),
                thousands(counts.restorable_pages),
                percent(counts.restorable_pages, counts.cached_pages),
                reasons_text(&counts.reasons),
            ]);
        };
        for fs in &self.scan.filesystems {
            row(&fs.fs, &fs.device, fs);
        }
        let all = FilesystemCounts {
            fs: "all".into(),
            device: String::new(),
            files: self.scan.filesystems.iter().map(|fs| fs.files).sum(),
            cached_pages: self.scan.cached_pages(),
            restorable_pages: self.scan.restorable_pages(),
            reasons: BTreeMap::new(),
        };
        row(&all.fs, &all.device, &all);
        let torn = match self.scan.structs_torn {
            0 => String::new(),
            count => format!("{count} kernel structures were torn or odd and left out\n"),
        };
        Some(format!("{table}\npages of 4 KiB\n{torn}"))
    }

    fn files(&self) -> Option<String> {
        let mut table = table(&["CACHED", "RESTORABLE", "", "SIZE", "FILE"], &[0, 1, 2, 3]);
        for file in &self.scan.files {
            let fs = &self.scan.filesystems[file.filesystem];
            let path = file.path.clone().unwrap_or(format!("(inode {})", file.ino));
            table.add_row([
                thousands(file.cached_pages),
                thousands(file.restorable_pages),
                percent(file.restorable_pages, file.cached_pages),
                bytes(file.size_bytes),
                format!("{}:{path}", fs.device),
            ]);
        }
        (!self.scan.files.is_empty()).then(|| format!("{table}\n"))
    }

    fn timing(&self) -> Option<String> {
        let timings = &self.scan.timings;
        Some(format!(
            "scanned in {:.1} ms: kernel, symbols and types {:.1} ms, page cache {:.1} ms\n",
            self.scan_ms(),
            timings.attach.as_secs_f64() * 1e3,
            timings.walk.as_secs_f64() * 1e3
        ))
    }

    fn verification(&self) -> Option<String> {
        let verified = self.verified?;
        let nonzero = verified.equal + verified.different;
        let mut text = format!(
            "verified against the disks, read with O_DIRECT: {} of {} non-zero pages equal ({}), \
             {} different; {} zero pages prove nothing\n",
            thousands(verified.equal),
            thousands(nonzero),
            percent(verified.equal, nonzero),
            thousands(verified.different),
            thousands(verified.zero)
        );
        if verified.unread > 0 {
            text += &format!("{} pages could not be read\n", thousands(verified.unread));
        }
        Some(text)
    }

    fn scan_ms(&self) -> f64 {
        (self.scan.timings.attach + self.scan.timings.walk).as_secs_f64() * 1e3
    }

    /// One JSON object a line; the last is the summary.
    pub(crate) fn json(&self, out: &mut impl Write) -> io::Result<()> {
        let scan = self.scan;
        for range in self.vm.memory().ranges() {
            let block = match self.vm {
                Vm::Live(vm) => json!(vm.layout.blocks[range.block].name),
                Vm::Dump(_) | Vm::Connector(_) => Value::Null,
            };
            let line = json!({ "type": "ram", "gpa": range.gpa, "bytes": range.bytes,
                "block": block, "offset": range.offset });
            writeln!(out, "{line}")?;
        }
        for (disk, backing) in scan.disks.iter().zip(self.backings) {
            let (file, format, problem) = match backing {
                Ok(image) => (json!(image.to_string()), json!(image.format()), Value::Null),
                Err(why) => (Value::Null, Value::Null, json!(why)),
            };
            let line = json!({ "type": "disk", "name": disk.name, "bytes": disk.bytes,
                "path": disk.path.as_ref().map(DiskPath::to_string), "file": file, "format": format,
                "unmatched": problem });
            writeln!(out, "{line}")?;
        }
        for fs in &scan.filesystems {
            let line = json!({ "type": "filesystem", "fs": fs.fs, "device": fs.device,
                "files": fs.files, "cached_pages": fs.cached_pages,
                "restorable_pages": fs.restorable_pages, "reasons": reasons_json(&fs.reasons) });
            writeln!(out, "{line}")?;
        }
        for file in &scan.files {
            let line = json!({ "type": "file", "device": scan.filesystems[file.filesystem].device,
                "ino": file.ino, "path": file.path, "bytes": file.size_bytes,
                "cached_pages": file.cached_pages, "restorable_pages": file.restorable_pages });
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{}", self.summary())
    }

    fn summary(&self) -> Value {
        let scan = self.scan;
        let mut summary = json!({
            "type": "summary",
            "kernel": scan.kernel.release,
            "build_id": scan.kernel.build_id,
            "profile": origin(scan.profile_origin),
            "cached_pages": scan.cached_pages(),
            "restorable_pages": scan.restorable_pages(),
            "reasons": reasons_json(&scan.reasons()),
            "structs_torn": scan.structs_torn,
            "attach_ms": scan.timings.attach.as_secs_f64() * 1e3,
            "walk_ms": scan.timings.walk.as_secs_f64() * 1e3,
            "scan_ms": self.scan_ms(),
        });
        if let Some(verified) = self.verified {
            summary["verified_equal"] = verified.equal.into();
            summary["verified_different"] = verified.different.into();
            summary["verified_zero"] = verified.zero.into();
            summary["verified_unread"] = verified.unread.into();
        }
        summary
    }
}

/// How the profile was come by.
fn origin(origin: ProfileOrigin) -> &'static str {
    match origin {
        ProfileOrigin::GuestMemory => "from guest memory",
        ProfileOrigin::Kept => "kept",
        ProfileOrigin::Completed => "kept, completed from guest memory",
        ProfileOrigin::Given => "given",
    }
}

/// A table without lines; `right` are the columns of numbers.
fn table(columns: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns);
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn reasons_text(reasons: &BTreeMap<Reason, u64>) -> String {
    let mut reasons: Vec<(&Reason, &u64)> = reasons.iter().collect();
    reasons.sort_by_key(|(_, pages)| std::cmp::Reverse(**pages));
    let lines: Vec<String> = reasons
        .iter()
        .map(|(reason, pages)| format!("{} {}", thousands(**pages), reason.name()))
        .collect();
    lines.join("\n")
}

fn reasons_json(reasons: &BTreeMap<Reason, u64>) -> Value {
    reasons
        .iter()
        .map(|(reason, pages)| (reason.name().to_owned(), json!(pages)))
        .collect()
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        // Rounded down: 100.00 % is said only of all.
        _ => {
            let hundredths = u128::from(part) * 10_000 / u128::from(whole);
            format!("{}.{:02} %", hundredths / 100, hundredths % 100)
        }
    }
}

fn signed_hex(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{:#x}", number.unsigned_abs())
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(number: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS
        .into_iter()
        .find(|&(_, unit)| number >= unit && number > 9 * PAGE_BYTES)
    {
        Some((name, unit)) if number.is_multiple_of(unit) => format!("{} {name}", number / unit),
        Some((name, unit)) => format!("{:.1} {name}", number as f64 / unit as f64),
        None => format!("{number} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_people_read_them() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(123), "123");
        assert_eq!(percent(99_999, 100_000), "99.99 %");
        assert_eq!(percent(5, 5), "100.00 %");
        assert_eq!(bytes(1 << 30), "1 GiB");
        assert_eq!(bytes(1_258_291_200), "1.2 GiB");
        assert_eq!(bytes(100), "100 B");
    }
}
