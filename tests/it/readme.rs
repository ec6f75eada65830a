//! The README does what it says: its blocks tagged `sh`, `python` and `js` are run in their order against a
//! real worker, and where a `text` block follows, that is what they print.

use crate::support::nats::Nats;
use crate::support::process::own_environment;
use crate::support::worker::{Backend, Setup, Worker};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Block {
    language: String,
    text: String,
    line: usize,
    /// Nothing but blank lines lies between this block and the one before.
    follows: bool,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut open, mut follows) = (false, false);
    for (number, line) in readme.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            if !open {
                blocks.push(Block {
                    language: language.to_owned(),
                    text: String::new(),
                    line: number + 1,
                    follows,
                });
            }
            (open, follows) = (!open, open);
        } else if open {
            let block = blocks.last_mut().unwrap();
            block.text.push_str(line);
            block.text.push('\n');
        } else if !line.trim().is_empty() {
            follows = false;
        }
    }
    blocks
}

/// Versions differ from run to run: each is replaced by its place among those of its text.
fn without_versions(text: &str) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|char: char| char.is_ascii_hexdigit()) {
        let digits = rest[at..].find(|char: char| !char.is_ascii_hexdigit()).unwrap_or(rest.len() - at);
        let word = &rest[at..at + digits];
        out.push_str(&rest[..at]);
        if digits == 32 {
            let place = seen.iter().position(|version| *version == word).unwrap_or_else(|| {
                seen.push(word);
                seen.len() - 1
            });
            out.push_str(&format!("VERSION-{place}"));
        } else {
            out.push_str(word);
        }
        rest = &rest[at + digits..];
    }
    out + rest
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients")
}

fn run(block: &Block, folder: &Path, url: &str) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_datastore")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let python = clients().join("venv/bin/python");
    let (program, flag) = match block.language.as_str() {
        "sh" => (Path::new("sh"), "-c"),
        "python" => (python.as_path(), "-c"),
        "js" => (Path::new("node"), "-e"),
        other => panic!("no way to run {other}"),
    };
    let text = if block.language == "sh" {
        format!("exec 2>&1\nset -e\n{}", block.text)
    } else {
        block.text.clone()
    };
    let output = own_environment(&mut Command::new(program))
        .args([flag, &text])
        .current_dir(folder)
        .env("PATH", path)
        .env("DATASTORE__NATS__URL", url)
        .env("DATASTORE__NATS__SUBJECT_PREFIX", "ds")
        .env("NODE_PATH", clients().join("node_modules"))
        .output()
        .unwrap_or_else(|error| {
            panic!("README line {}: {}: {error}; run make deps-test", block.line, program.display())
        });
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "README line {} failed:\n{}\n{printed}{told}", block.line, block.text);
    printed
}

#[test]
fn the_readme_does_what_it_says() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let nats = Nats::start();
    let mut setup = Setup::new(&nats, Backend::Local);
    setup.prefix = "ds".to_owned();
    let _worker = Worker::start(setup);
    let folder = tempfile::tempdir().unwrap();
    let blocks = blocks(&readme);
    let mut ran = 0;
    for (at, block) in blocks.iter().enumerate() {
        if !["sh", "python", "js"].contains(&block.language.as_str()) {
            continue;
        }
        let printed = run(block, folder.path(), &nats.url());
        ran += 1;
        if let Some(shown) = blocks.get(at + 1).filter(|next| next.language == "text" && next.follows) {
            let (printed, shown_text) = (without_versions(&printed), without_versions(&shown.text));
            assert_eq!(
                printed.trim_end(),
                shown_text.trim_end(),
                "README line {}: printed != shown",
                shown.line
            );
        }
    }
    assert!(ran >= 10, "only {ran} blocks were found");
    assert!(!readme.contains("@@"), "a place in the README is not filled in");
}
