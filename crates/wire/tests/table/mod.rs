//! Reads vector tables: blocks of `name = value` lines, separated by empty lines; `#` starts a comment.

use std::collections::BTreeMap;

/// One block.
#[derive(Debug)]
pub struct Row(BTreeMap<String, String>);

impl Row {
    /// The value as it is written.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("no `{name}` in {self:?}"))
    }

    /// The value, where `none` means that there is none.
    pub fn optional(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|value| *value != "none")
    }

    /// The value, from hexadecimal.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        hex(self.text(name))
    }

    /// The value, from hexadecimal of exactly this length.
    pub fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().unwrap_or_else(|_| panic!("`{name}` is not {N} bytes"))
    }
}

/// All blocks of a table; an empty table is an error, since it would assert nothing.
pub fn rows(table: &str) -> Vec<Row> {
    let lines: Vec<&str> = table.lines().filter(|line| !line.starts_with('#')).collect();
    let rows: Vec<Row> = lines
        .split(|line| line.is_empty())
        .filter(|block| !block.is_empty())
        .map(|block| Row(block.iter().map(|line| pair(line)).collect()))
        .collect();
    assert!(!rows.is_empty());
    rows
}

/// Bytes from hexadecimal.
pub fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "odd number of digits");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn pair(line: &str) -> (String, String) {
    let (name, value) = line.split_once(" = ").unwrap_or_else(|| panic!("no ` = ` in `{line}`"));
    (name.to_owned(), value.to_owned())
}
