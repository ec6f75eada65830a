//! Imports point downward: no file of `src/` uses a folder above its own floor, or beside it.

use std::path::{Path, PathBuf};

/// Floors from the bottom up. The process at the top is a chain: main > cli > app > config.
const FLOORS: [(&str, u8); 19] = [
    ("model", 0),
    ("telemetry", 0),
    ("codec", 1),
    ("placement", 1),
    ("link", 1),
    ("client", 1),
    ("backend", 2),
    ("layer", 3),
    ("cache", 4),
    ("queue", 5),
    ("store", 6),
    ("control", 6),
    ("server", 7),
    ("http", 7),
    ("config", 8),
    ("app", 9),
    ("cli", 10),
    ("main", 11),
    ("lib", 12),
];

fn floor(part: &str) -> u8 {
    let found = FLOORS.iter().find(|(name, _)| *name == part);
    found.unwrap_or_else(|| panic!("{part} has no floor: give it one here and in ARCHITECTURE.md")).1
}

/// The client speaks codec, which lies on its own floor: the one exception.
fn allowed(from: &str, to: &str) -> bool {
    from == to || floor(to) < floor(from) || (from == "client" && to == "codec")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("crate::").filter_map(|(at, _)| {
        let rest = &text[at + "crate::".len()..];
        let end = rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '_')?;
        (end > 0).then(|| &rest[..end])
    })
}

#[test]
fn imports_point_downward() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were found");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let part = first.trim_end_matches(".rs");
        // `crate::{a, b}` would hide what it imports.
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            !text.contains("use crate::{"),
            "{}: one `use crate::part` for each part",
            relative.display()
        );
        let parts = imports(&text).filter(|to| FLOORS.iter().any(|(name, _)| name == to));
        for to in parts.filter(|to| !allowed(part, to)) {
            wrong.push(format!("{} uses {to}", relative.display()));
        }
    }
    assert!(wrong.is_empty(), "upward or sideways imports:\n{}", wrong.join("\n"));
}
