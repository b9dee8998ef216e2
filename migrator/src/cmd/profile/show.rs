//! A profile as people read it: whose it is, what can be used with it, and what it says.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use profiles::profile::SYMBOLS;
use profiles::{Layouts, Profile};

/// Why less than everything can be done with a profile; empty where nothing is missing.
pub(super) fn problems(profile: &Profile) -> Vec<String> {
    let mut problems = Vec::new();
    match Layouts::resolve(profile) {
        Err(missing) => problems.push(missing.to_string()),
        Ok(layouts) => {
            let lacking = layouts.modules().into_iter();
            let lacking = lacking.filter_map(|(module, missing)| Some((module, missing?)));
            problems.extend(
                lacking.map(|(module, missing)| format!("no types of {module}: {missing}")),
            );
        }
    }
    let symbols = SYMBOLS
        .iter()
        .any(|name| profile.link_address(name).is_some());
    if !symbols {
        problems.push("no symbols: name the kernel's System.map, vmlinux or vmlinuz".into());
    }
    problems
}

/// Everything that a profile holds.
pub(super) fn text(profile: &Profile) -> String {
    let mut text = format!("Linux {}", profile.kernel.release);
    if let Some(build_id) = &profile.kernel.build_id {
        let _ = write!(text, ", build {build_id}");
    }
    text.push_str("\n\n");
    let problems = problems(profile);
    if problems.is_empty() {
        text.push_str("Types of the kernel, ext4, XFS, btrfs and device mapper are complete.\n");
    }
    for problem in problems {
        let _ = writeln!(text, "{problem}");
    }
    let _ = writeln!(
        text,
        "\n{}\n\n{}\n\n{}",
        structs(profile),
        enums(profile),
        symbols(profile)
    );
    text
}

fn table(header: [&str; 4]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn structs(profile: &Profile) -> Table {
    let mut table = table(["struct", "member", "offset", "size"]);
    for (name, of) in &profile.recording().structs {
        table.add_row([name, "", "", &of.size.to_string()]);
        for (member, field) in &of.members {
            table.add_row([
                "",
                member,
                &field.offset.to_string(),
                &field.size.to_string(),
            ]);
        }
    }
    for column in 2..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn enums(profile: &Profile) -> Table {
    let mut table = table(["enum", "constant", "value", ""]);
    for (name, constants) in &profile.recording().enums {
        let name = if name.is_empty() { "(unnamed)" } else { name };
        for (index, (constant, value)) in constants.iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            table.add_row([name, constant, &value.to_string(), ""]);
        }
    }
    table
}

fn symbols(profile: &Profile) -> Table {
    let mut table = table(["symbol", "linked at", "", ""]);
    for name in SYMBOLS {
        if let Some(address) = profile.link_address(name) {
            table.add_row([name, &format!("{address:#x}"), "", ""]);
        }
    }
    table
}
