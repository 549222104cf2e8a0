//! HTML pages for reports: plots with captions, and a block of text.

use std::path::Path;

use anyhow::Context;

/// Writes a page to `path`. Each plot is SVG with a caption in HTML; `text` is shown verbatim.
pub(crate) fn write(path: &Path, title: &str, plots: &[(String, String)], text: &str) -> anyhow::Result<()> {
    let plots: String = plots.iter().map(|(plot, caption)| format!("{plot}\n<p>{caption}</p>\n")).collect();
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n\
         <body style=\"font-family: sans-serif; max-width: 1200px; margin: auto\">\n<h1>{title}</h1>\n{plots}<pre>{}</pre>\n</body></html>\n",
        escape(text)
    );
    std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
