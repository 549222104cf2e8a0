//! Directory depth is layer depth: a module imports only from the rows above its own, and siblings do not import each other.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. Modules of one row do not import each other.
const ROWS: [&[&str]; 8] = [
    &["error", "id", "clock", "concurrent", "parallel"],
    &["config"],
    &["codec"],
    &["io"],
    &["manifest"],
    &["wal", "segment", "index", "tier"],
    &["engine"],
    &["inspect", "cache", "fuzzing", "internals"],
];

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_none_or(|n| n != "bin" && n != "tests") {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The module of the crate that a file belongs to.
fn module_of(src: &Path, file: &Path) -> String {
    let first = file.strip_prefix(src).expect("below src").components().next().expect("a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The modules that a file's code outside its tests names after `crate::`.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = Vec::new();
    for line in lines {
        for rest in line.split("crate::").skip(1) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            found.extend((!name.is_empty()).then_some(name));
        }
        if let Some(list) = line.trim().strip_prefix("use crate::{") {
            let names = list.trim_end_matches("};").split(", ").filter_map(|n| n.split("::").next());
            found.extend(names.map(str::to_owned));
        }
    }
    found
}

#[test]
fn modules_import_only_from_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the sources were found");
    let mut wrong = Vec::new();
    for file in &files {
        let from = module_of(&src, file);
        if from == "lib" {
            continue;
        }
        let from_row = row(&from).unwrap_or_else(|| panic!("{from} has no row"));
        for to in imports(&fs::read_to_string(file).expect("a source")) {
            let Some(to_row) = row(&to) else { continue };
            if to != from && to_row >= from_row {
                wrong.push(format!("{} imports crate::{to}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_format_document_holds_every_byte_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/FORMAT.md")).expect("docs/FORMAT.md");
    for (kind, table) in everwarm::LAYOUT {
        assert!(document.contains(table.trim_end()), "docs/FORMAT.md lacks the table of {kind} as the code has it");
    }
}
