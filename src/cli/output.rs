//! Text for people: columns, durations, and bytes that cannot upset a terminal.

use std::borrow::Cow;

use data_encoding::HEXLOWER;

/// Text as it is where every character shows, else with the others escaped.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_hidden) {
        Cow::Owned(text.chars().flat_map(escape).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Record data: as text where it is printable, else as hex with its length.
pub(super) fn data(bytes: &[u8], longest: Option<usize>) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(is_hidden) => shorten(text, longest),
        _ => {
            let shown = longest.map_or(bytes.len(), |longest| bytes.len().min(longest / 2));
            let rest = if shown < bytes.len() { "…" } else { "" };
            format!("0x{}{rest} ({} bytes)", HEXLOWER.encode(&bytes[..shown]), bytes.len())
        }
    }
}

fn shorten(text: &str, longest: Option<usize>) -> String {
    match longest.and_then(|longest| text.char_indices().nth(longest)) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Control characters, and those that reorder the text around them.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(character: char) -> Vec<char> {
    if is_hidden(character) { character.escape_default().collect() } else { vec![character] }
}

/// Lines of cells as columns of equal width; the columns in `right` are aligned to the right.
pub(super) fn columns(lines: &[Vec<String>], right: &[usize]) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if right.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_text_where_it_is_printable_and_hex_elsewhere() {
        assert_eq!(data("grüße".as_bytes(), None), "grüße");
        assert_eq!(data(b"", None), "");
        assert_eq!(data(&[0xff, 0x00], None), "0xff00 (2 bytes)");
        assert_eq!(data(b"\x1b[2J", None), "0x1b5b324a (4 bytes)");
        assert_eq!(data("grüße".as_bytes(), Some(3)), "grü…");
        assert_eq!(data(&[0xab; 100], Some(4)), "0xabab… (100 bytes)");
    }

    #[test]
    fn names_cannot_upset_the_terminal() {
        assert_eq!(printable("note-1"), "note-1");
        assert_eq!(printable("é\x1b\n"), "é\\u{1b}\\n");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn columns_line_up() {
        let lines = [vec!["N", "ID"], vec!["10", "é"], vec!["7", "long"]];
        let lines = lines.map(|line| line.into_iter().map(str::to_owned).collect());
        assert_eq!(columns(&lines, &[0]), " N  ID\n10  é\n 7  long\n");
    }
}
