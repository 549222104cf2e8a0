//! The structure of the sources: which module may import which, which file of the engine may call
//! which, how long functions are, and that documents hold the byte tables of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. Modules of one row do not import each other.
const ROWS: [&[&str]; 9] = [
    &["error", "id"],
    &["clock", "compress", "concurrent", "parallel"],
    &["config"],
    &["codec"],
    &["io"],
    &["manifest"],
    &["wal", "segment", "index", "tier"],
    &["engine"],
    &["inspect", "cache", "fuzzing", "internals"],
];

/// Files and wings of the engine, from the bottom up. A wing calls and imports only itself and the
/// rows above its own in this list; `recover` knows none of the other wings.
const ENGINE_ROWS: [&[&str]; 8] = [
    &["disk_room", "file_names", "log_limit", "recovery_report", "refused", "room", "sync_waiters", "timer", "model"],
    &["context", "counters", "events", "health", "recover"],
    &["log"],
    &["meta"],
    &["ops"],
    &["space"],
    &["warmth", "stats"],
    &["background", "open"],
];

/// Fields of `Engine`.
const ENGINE_FIELDS_MAX: usize = 16;

/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that may be longer, with the reason.
const LONG_FUNCTIONS: [(&str, &str); 0] = [];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` that end in `.rs`, without those of the directories in `except`.
fn sources(dir: &Path, except: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory that can be read") {
        let path = entry.expect("an entry").path();
        let is_excepted = path.file_name().is_some_and(|name| except.iter().any(|except| name == *except));
        if path.is_dir() && !is_excepted {
            found.extend(sources(&path, except));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The lines of a file that are code outside its unit tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source");
    let production = text.split("\nmod tests {").next().unwrap_or(&text);
    production.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// The path of a file below `base`, without its ending; `a/mod` is `a`.
fn name_of(base: &Path, file: &Path) -> String {
    let name = file.strip_prefix(base).expect("below the base").with_extension("");
    let name = name.to_string_lossy().into_owned();
    name.strip_suffix("/mod").map(str::to_owned).unwrap_or(name)
}

fn row(rows: &[&[&str]], module: &str) -> Option<usize> {
    rows.iter().position(|row| row.contains(&module))
}

/// The identifier at the front of `text`.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// What the code names behind `prefix`: the first identifier of each path, also in braces.
fn named_behind<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let behind = code.match_indices(prefix).map(move |(at, _)| &code[at + prefix.len()..]);
    behind.flat_map(|rest| match rest.strip_prefix('{') {
        Some(list) => {
            let list = &list[..list.find(';').unwrap_or(list.len())];
            let mut depth = 0;
            let top = move |c: char| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                c == ',' && depth <= 0
            };
            list.split(top).map(|item| identifier(item.trim())).collect()
        }
        None => vec![identifier(rest)],
    })
}

#[test]
fn modules_import_only_from_below() {
    let src = root().join("src");
    let files = sources(&src, &["bin", "tests"]);
    assert!(files.len() > 60, "{} sources were found", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let name = name_of(&src, file);
        let from = name.split('/').next().expect("a name");
        if from == "lib" {
            continue;
        }
        let from_row = row(&ROWS, from).unwrap_or_else(|| panic!("{from} has no row"));
        for to in named_behind(&code(file), "crate::") {
            if to.starts_with(|c: char| c.is_ascii_uppercase()) {
                wrong.push(format!("{name} imports crate::{to}, and not from the module that defines it"));
            }
            let Some(to_row) = row(&ROWS, to) else { continue };
            if to != from && to_row >= from_row {
                wrong.push(format!("{name} imports crate::{to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The production files of the engine but for its root, with their code.
fn engine_files() -> BTreeMap<String, String> {
    let base = root().join("src/engine");
    let files = sources(&base, &["tests"]).into_iter().filter(|file| *file != base.join("mod.rs"));
    files.map(|file| (name_of(&base, &file), code(&file))).collect()
}

fn wing_of(file: &str) -> &str {
    file.split('/').next().expect("a name")
}

/// Files of the engine that a file imports: through `crate::engine::` and through `super::`.
fn engine_imports(file: &str, code: &str, files: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut resolve = |path: String| {
        let parts: Vec<&str> = path.split("::").collect();
        let longest = (1..=parts.len()).rev().map(|n| parts[..n].join("/")).find(|name| files.contains_key(name));
        found.extend(longest.filter(|to| to != file));
    };
    for line in code.lines().map(str::trim) {
        let Some(path) = line.strip_prefix("use ").map(|rest| rest.trim_end_matches(';')) else { continue };
        let from_root = path.strip_prefix("crate::engine::").map(str::to_owned);
        let parent = file.rsplit_once('/').map_or("", |(parent, _)| parent).replace('/', "::");
        let from_parent = path.strip_prefix("super::").map(|rest| match parent.as_str() {
            "" => rest.to_owned(),
            parent => format!("{parent}::{rest}"),
        });
        if let Some(path) = from_root.or(from_parent) {
            let (base, list) = path.split_once('{').unwrap_or((&path, ""));
            match list {
                "" => resolve(base.to_owned()),
                list => list.trim_end_matches('}').split(", ").for_each(|item| resolve(format!("{base}{item}"))),
            }
        }
    }
    found
}

/// The names of the methods in the `impl Engine` blocks of a file.
fn engine_methods(code: &str) -> BTreeSet<String> {
    let blocks = code.split("\nimpl Engine {\n").skip(1).map(|rest| rest.split("\n}\n").next().unwrap_or(rest));
    blocks.flat_map(|block| block.split("fn ").skip(1).map(|rest| identifier(rest).to_owned()).collect::<Vec<_>>()).collect()
}

/// Methods of the engine that a file calls, or names as a function.
fn engine_calls(code: &str, methods: &BTreeMap<String, String>) -> BTreeSet<String> {
    let receivers = ["self.", "engine.", "e.", "self.0.", "Engine::"];
    let named = receivers.iter().flat_map(|receiver| code.match_indices(receiver).map(|(at, _)| (at, at + receiver.len())));
    let called = named.filter_map(|(at, end)| {
        let before = code[..at].chars().next_back();
        let is_whole = before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
        let name = identifier(&code[end..]);
        let after = &code[end + name.len()..];
        let is_call = after.starts_with('(') || code[at..].starts_with("Engine::");
        (is_whole && is_call && methods.contains_key(name)).then(|| name.to_owned())
    });
    called.collect()
}

/// Fails if the graph has a cycle, and names it.
fn assert_acyclic(graph: &BTreeMap<String, BTreeSet<String>>, kind: &str) {
    fn visit(graph: &BTreeMap<String, BTreeSet<String>>, at: &str, path: &mut Vec<String>, done: &mut BTreeSet<String>, kind: &str) {
        if let Some(start) = path.iter().position(|name| name == at) {
            panic!("a cycle of {kind}: {} -> {at}", path[start..].join(" -> "));
        }
        if !done.contains(at) {
            path.push(at.to_owned());
            graph.get(at).into_iter().flatten().for_each(|to| visit(graph, to, path, done, kind));
            path.pop();
            done.insert(at.to_owned());
        }
    }
    let mut done = BTreeSet::new();
    graph.keys().for_each(|name| visit(graph, name, &mut Vec::new(), &mut done, kind));
}

fn assert_order(graph: &BTreeMap<String, BTreeSet<String>>, kind: &str) {
    for (from, to) in graph.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
        let rows = [from, to].map(|file| row(&ENGINE_ROWS, wing_of(file)).unwrap_or_else(|| panic!("{file} has no row in the engine")));
        assert!(wing_of(from) == wing_of(to) || rows[0] > rows[1], "{kind}: {from} -> {to}");
    }
}

#[test]
fn wings_of_the_engine_import_one_way() {
    let files = engine_files();
    assert!(files.len() > 40, "{} files were found", files.len());
    let graph = files.iter().map(|(file, code)| (file.clone(), engine_imports(file, code, &files))).collect();
    assert_acyclic(&graph, "imports");
    assert_order(&graph, "import");
}

#[test]
fn methods_of_the_engine_call_one_way() {
    let files = engine_files();
    let mut home = BTreeMap::new();
    for (file, code) in &files {
        for method in engine_methods(code) {
            assert_eq!(home.insert(method.clone(), file.clone()), None, "{method} is defined twice");
        }
    }
    assert!(home.len() > 100, "{} methods were found", home.len());
    let calls = |file: &String, code: &String| -> BTreeSet<String> {
        // Recovery runs before there is an engine.
        let called = if wing_of(file) == "recover" { BTreeSet::new() } else { engine_calls(code, &home) };
        called.iter().map(|method| home[method].clone()).filter(|to| to != file).collect()
    };
    let graph = files.iter().map(|(file, code)| (file.clone(), calls(file, code))).collect();
    assert_acyclic(&graph, "calls");
    assert_order(&graph, "call");
}

#[test]
fn the_engine_has_few_fields() {
    let code = code(&root().join("src/engine/mod.rs"));
    let body = code.split("pub(crate) struct Engine {\n").nth(1).and_then(|rest| rest.split("\n}\n").next()).expect("the struct");
    let fields = body.lines().filter(|line| line.contains(':')).count();
    assert!((5..=ENGINE_FIELDS_MAX).contains(&fields), "Engine has {fields} fields, {ENGINE_FIELDS_MAX} are the most");
}

#[test]
fn functions_fit_a_screen() {
    let mut long = Vec::new();
    for file in sources(&root().join("src"), &[]) {
        let text = fs::read_to_string(&file).expect("a source");
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indent = &line[..line.len() - line.trim_start().len()];
            let name = line.trim_start().split("fn ").nth(1).map(identifier).unwrap_or_default();
            let is_head =
                ["fn ", "pub", "async fn", "const fn", "unsafe fn", "extern"].iter().any(|head| line.trim_start().starts_with(head));
            if name.is_empty() || !is_head || line.trim_start().starts_with("//") {
                continue;
            }
            let end = lines[start..]
                .iter()
                .position(|end| *end == format!("{indent}}}") || end.ends_with("{}") || *end == format!("{indent}}};"));
            let length = end.unwrap_or(0) + 1;
            if length > FUNCTION_LINES_MAX && !LONG_FUNCTIONS.iter().any(|(allowed, _)| *allowed == name) {
                long.push(format!("{name} in {} has {length} lines", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_format_document_holds_every_byte_table() {
    let document = fs::read_to_string(root().join("docs/FORMAT.md")).expect("docs/FORMAT.md");
    for (kind, table) in everwarm::LAYOUT {
        assert!(document.contains(table.trim_end()), "docs/FORMAT.md lacks the table of {kind} as the code has it");
    }
}
