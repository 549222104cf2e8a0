//! The prose of comments and documents: plain words, short sentences, lines that a diff can show.

use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line of a comment or of a document.
const COLUMNS_MAX: usize = 100;
/// Times the word "what" may stand in 1,000 words: a sentence names the thing instead.
const WHAT_MAX: f64 = 3.0;
/// Times that one of [`VAGUE`] may stand in 1,000 words.
const VAGUE_MAX: f64 = 0.5;
/// Words that stand for a thing or a person that could be named.
const VAGUE: [&str; 12] = [
    "whoever",
    "whatever",
    "whichever",
    "somebody",
    "anybody",
    "nobody",
    "everybody",
    "those who",
    "so many",
    "so much",
    "as above",
    "the same of",
];
/// Mean and longest sentence of the documents that are read first, in words.
const SENTENCE_MEAN_MAX: f64 = 16.0;
const SENTENCE_MAX: usize = 45;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` with this ending, without build directories and fuzz inputs.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory that can be read") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "corpus", "artifacts"].contains(&name.as_str()) && !name.starts_with('.') {
            found.extend(files(&path, ending));
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// The text of a comment line, without its marker. `None` for code.
fn comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    ["///", "//!", "//"].iter().find_map(|marker| line.strip_prefix(marker)).map(|text| text.strip_prefix(' ').unwrap_or(text))
}

/// Paragraphs of prose: without code, headings, pictures and short table cells.
fn paragraphs<'a>(lines: impl Iterator<Item = Option<&'a str>>) -> Vec<String> {
    let (mut found, mut open, mut is_fenced) = (Vec::new(), String::new(), false);
    let mut close = |open: &mut String| {
        if !open.is_empty() {
            found.push(std::mem::take(open));
        }
    };
    for line in lines {
        let text = line.map(str::trim).unwrap_or_default();
        let is_item =
            text.starts_with("- ") || text.starts_with("* ") || text.split_once(". ").is_some_and(|(n, _)| n.parse::<u32>().is_ok());
        if text.starts_with("```") {
            is_fenced = !is_fenced;
        }
        if text.is_empty() || text.starts_with("```") || is_fenced || text.starts_with(['#', '<']) || text.starts_with("![") {
            close(&mut open);
        } else if text.starts_with('|') {
            close(&mut open);
            text.split('|').filter(|cell| cell.split_whitespace().count() > 6).for_each(|cell| close(&mut cell.trim().to_owned()));
        } else {
            if is_item {
                close(&mut open);
            }
            open.push_str(text);
            open.push(' ');
        }
    }
    close(&mut open);
    found
}

fn prose(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).expect("a text");
    match file.extension().is_some_and(|ending| ending == "md") {
        true => paragraphs(text.lines().map(Some)),
        false => paragraphs(text.lines().map(comment)),
    }
}

/// Words of each sentence of a paragraph. Code in backticks counts as one word.
fn sentence_lengths(paragraph: &str) -> Vec<usize> {
    let plain: String = paragraph.split('`').enumerate().map(|(i, part)| if i % 2 == 1 { "code" } else { part }).collect();
    let (mut lengths, mut length) = (Vec::new(), 0);
    let words: Vec<&str> = plain.split_whitespace().collect();
    for (i, word) in words.iter().enumerate() {
        length += 1;
        let ends = word.trim_end_matches([')', '*', '"']).ends_with(['.', '!', '?']);
        let begins = |next: &&str| {
            next.trim_start_matches(['(', '*', '"', '[']).starts_with(|c: char| c.is_uppercase() || c.is_numeric())
                || next.starts_with("code")
        };
        if ends && words.get(i + 1).is_none_or(begins) {
            lengths.push(std::mem::take(&mut length));
        }
    }
    lengths.extend((length > 0).then_some(length));
    lengths
}

fn documents() -> Vec<PathBuf> {
    let mut found = files(&root().join("docs"), ".md");
    found.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)));
    found
}

fn sources() -> Vec<PathBuf> {
    ["src", "tests", "benches", "fuzz"].iter().flat_map(|dir| files(&root().join(dir), ".rs")).collect()
}

/// How often `word` stands in `text`, as whole words.
fn count(text: &str, word: &str) -> usize {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let is_whole = |at: usize| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !before.is_some_and(is_letter) && !after.is_some_and(is_letter)
    };
    text.match_indices(word).filter(|(at, _)| is_whole(*at)).count()
}

#[test]
fn prose_names_things() {
    for (kind, texts) in [("comments", sources()), ("documents", documents())] {
        let paragraphs: Vec<String> = texts.iter().flat_map(|file| prose(file)).map(|text| text.to_lowercase()).collect();
        let words: usize = paragraphs.iter().map(|text| text.split_whitespace().count()).sum();
        assert!(words > 10_000, "{words} words of {kind} were found");
        let rate = |word: &str| paragraphs.iter().map(|text| count(text, word)).sum::<usize>() as f64 * 1_000.0 / words as f64;
        assert!(rate("what") <= WHAT_MAX, "{kind}: \"what\" stands {:.1} times in 1,000 words", rate("what"));
        for word in VAGUE {
            assert!(rate(word) <= VAGUE_MAX, "{kind}: \"{word}\" stands {:.1} times in 1,000 words", rate(word));
        }
    }
}

#[test]
fn documents_that_are_read_first_have_short_sentences() {
    for name in ["ARCHITECTURE.md", "docs/FORMAT.md"] {
        let paragraphs = prose(&root().join(name));
        let lengths: Vec<usize> = paragraphs.iter().flat_map(|text| sentence_lengths(text)).collect();
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!(lengths.len() > 100 && mean <= SENTENCE_MEAN_MAX, "{name}: {mean:.1} words a sentence");
        for text in &paragraphs {
            let longest = sentence_lengths(text).into_iter().max().unwrap_or(0);
            assert!(longest <= SENTENCE_MAX, "{name}: a sentence of {longest} words in: {text}");
        }
    }
}

#[test]
fn comments_and_documents_wrap() {
    let mut long = Vec::new();
    for file in sources().into_iter().chain(documents()) {
        let is_document = file.extension().is_some_and(|ending| ending == "md");
        let text = fs::read_to_string(&file).expect("a text");
        let mut is_fenced = false;
        for (n, line) in text.lines().enumerate() {
            is_fenced ^= is_document && line.trim_start().starts_with("```");
            // A row of a table cannot wrap.
            let prose = if is_document { Some(line).filter(|_| !is_fenced) } else { comment(line) };
            let is_prose = prose.is_some_and(|text| !text.starts_with('|'));
            if is_prose && line.chars().count() > COLUMNS_MAX && !line.contains("://") {
                long.push(format!("{}:{}", file.display(), n + 1));
            }
        }
    }
    assert!(long.is_empty(), "{} lines are longer than {COLUMNS_MAX} columns: {long:#?}", long.len());
}

#[test]
fn names_of_tests_fit_a_line() {
    let mut long = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).expect("a source");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let is_test = lines[..i].iter().rev().take_while(|before| before.starts_with("#[")).any(|before| before.contains("test"));
            let name = line.trim_start_matches("async ").strip_prefix("fn ").map(|rest| rest.split('(').next().unwrap_or_default());
            if let Some(name) = name.filter(|name| is_test && name.len() > 70) {
                long.push(format!("{name} in {}", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}
