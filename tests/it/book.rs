//! The documents: every page is in the book, every link leads somewhere, nothing leads out of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Every Markdown file below `docs/`, seen from the root.
fn pages() -> BTreeSet<PathBuf> {
    let mut pages = BTreeSet::new();
    let mut directories = vec![PathBuf::from("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).expect("a directory") {
            let path = directory.join(entry.expect("an entry").file_name());
            if root().join(&path).is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                pages.insert(path);
            }
        }
    }
    pages
}

/// A text without its blocks of code.
fn prose(text: &str) -> String {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of links that lead to other files of the project, or within the page.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let targets = targets.map(|(target, _)| target.to_owned());
    targets.filter(|target| !target.contains("://")).collect()
}

/// What a heading is called in a link, as mdBook and code forges make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// `target` as seen from `page`, without dots.
fn resolve(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().expect("a directory").to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{target} of {page:?} leaves the project"),
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

/// What is wrong with the links of a page; `inside` is where they may lead.
fn broken_links(page: &Path, inside: &str) -> Vec<String> {
    let text = prose(&read(page));
    let check = |target: &String| {
        let (file, place) = target.split_once('#').unwrap_or((target, ""));
        let path = if file.is_empty() { page.to_owned() } else { resolve(page, file) };
        if !root().join(&path).exists() {
            return Some(format!("{page:?}: {target} does not exist"));
        }
        if !path.starts_with(inside) {
            return Some(format!("{page:?}: {target} leads out of the book"));
        }
        let is_missing = !place.is_empty() && !anchors(&read(&path)).contains(&place.to_owned());
        is_missing.then(|| format!("{page:?}: {target} has no such heading"))
    };
    links(&text).iter().filter_map(check).collect()
}

#[test]
fn every_page_is_in_the_book_once() {
    let summary = Path::new("docs/SUMMARY.md");
    let listed: Vec<PathBuf> =
        links(&read(summary)).iter().map(|target| resolve(summary, target)).collect();
    let mut expected = pages();
    expected.remove(summary);
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(listed.len(), expected.len(), "a page is listed twice");
}

#[test]
fn every_link_leads_somewhere() {
    let documents =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];
    let mut problems: Vec<String> =
        documents.iter().flat_map(|page| broken_links(Path::new(page), "")).collect();
    // The book stands alone: mdBook copies nothing from outside of it.
    problems.extend(pages().iter().flat_map(|page| broken_links(page, "docs")));
    assert_eq!(problems, [""; 0]);
}

#[test]
fn the_first_page_stays_short() {
    let lines = read(Path::new("README.md")).lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}
