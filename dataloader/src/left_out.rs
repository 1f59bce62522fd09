//! Files that are no data, and counts of everything that was found and not read.
//!
//! [`is_foreign`] is the one rule for files and folders that operating systems and tools leave among images. Class
//! folders, imports, archives, shards and inference all use it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Names without a leading dot that operating systems and file servers create, in any case.
const FOREIGN_NAMES: [&str; 9] = [
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "Thumbs.db",
    "desktop.ini",
];

/// Whether a file or folder of this name is no data: hidden, or made by an operating system or a file server.
pub(crate) fn is_foreign(name: &str) -> bool {
    let hidden = name.starts_with('.') && name != "." && name != "..";
    hidden || is_known_foreign(name)
}

/// Whether a path in an archive leads to a foreign file, or through a foreign folder. The hidden folders of an absolute
/// path don't count: they are where the archive was made.
pub(crate) fn is_foreign_path(path: &str) -> bool {
    if path.starts_with('/') {
        return path.split('/').any(is_known_foreign) || path.rsplit('/').next().is_some_and(is_foreign);
    }
    path.split('/').any(is_foreign)
}

fn is_known_foreign(name: &str) -> bool {
    FOREIGN_NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Why files or members were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason<'a> {
    /// [`is_foreign`] files and folders.
    Foreign,
    /// Names whose first dot cuts off more than the extension of an image or label.
    SeveralDots,
    SymbolicLink,
    /// Devices, pipes and so on.
    Special,
    /// Files with another extension; empty for none.
    Extension(&'a str),
}

impl Reason<'_> {
    fn describe(self) -> String {
        match self {
            Reason::Foreign => "hidden or system files".to_owned(),
            Reason::SeveralDots => {
                "images or labels with several dots in their names (a key ends at the first dot; rename them)"
                    .to_owned()
            }
            Reason::SymbolicLink => "symbolic links (store the files instead: tar --dereference)".to_owned(),
            Reason::Special => "devices, pipes and other special members".to_owned(),
            Reason::Extension("") => "files without an extension".to_owned(),
            Reason::Extension(extension) => {
                format!(".{} files", extension.to_lowercase().replace(char::is_control, "?"))
            }
        }
    }
}

/// Counts of the files and members that were found and not read, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeftOut {
    kinds: BTreeMap<String, LeftOutKind>,
}

/// The files and members of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOutKind {
    /// How many there are.
    pub count: u64,
    /// The name of the first one.
    pub first: String,
}

/// Limit of kinds, because there may be any number of extensions.
const MAX_KINDS: usize = 20;

impl LeftOut {
    /// Counts one file or member.
    pub(crate) fn add(&mut self, reason: Reason, name: &str) {
        self.add_kind(&reason.describe(), 1, name);
    }

    /// Adds the counts of `other`, which come later.
    pub(crate) fn merge(&mut self, other: &LeftOut) {
        for (kind, LeftOutKind { count, first }) in &other.kinds {
            self.add_kind(kind, *count, first);
        }
    }

    fn add_kind(&mut self, kind: &str, count: u64, first: &str) {
        let known = self.kinds.contains_key(kind) || self.kinds.len() < MAX_KINDS;
        let kind = if known { kind } else { "other files" };
        let new = || LeftOutKind { count: 0, first: first.chars().map(printable).take(200).collect() };
        self.kinds.entry(kind.to_owned()).or_insert_with(new).count += count;
    }

    /// Whether nothing was left out.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The kinds and their counts, sorted by kind.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &LeftOutKind)> {
        self.kinds.iter().map(|(kind, counts)| (kind.as_str(), counts))
    }

    /// The number of files and members of all kinds.
    pub fn total(&self) -> u64 {
        self.kinds.values().map(|kind| kind.count).sum()
    }
}

fn printable(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

/// One line, which follows "left out ": `2 .txt files (first notes.txt)`.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (position, (kind, LeftOutKind { count, first })) in self.kinds().enumerate() {
            let separator = if position > 0 { "; " } else { "" };
            write!(f, "{separator}{count} {kind}, first {first}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_and_system_names_are_foreign() {
        for name in [".DS_Store", "._a.jpg", ".trash", "__MACOSX", "@eaDir", "thumbs.DB", "lost+found"] {
            assert!(is_foreign(name), "{name}");
        }
        for name in ["ant", "a.b.jpg", ".", "..", "lost", "_MACOSX", "n01440764"] {
            assert!(!is_foreign(name), "{name}");
        }
        assert!(is_foreign_path("__MACOSX/a/b.jpg") && is_foreign_path("a/.b/c.jpg"));
        assert!(!is_foreign_path("./a/b.jpg") && !is_foreign_path("../a.jpg"));
        assert!(is_foreign_path("/x/__MACOSX/a.jpg") && is_foreign_path("/x/.a.jpg"));
        assert!(!is_foreign_path("/home/.cache/a.jpg"));
    }

    #[test]
    fn kinds_are_counted_and_limited() {
        let mut left_out = LeftOut::default();
        left_out.add(Reason::Extension("txt"), "notes.txt");
        left_out.add(Reason::Extension("TXT"), "more.TXT");
        let mut other = LeftOut::default();
        other.add(Reason::Foreign, ".x\ny");
        left_out.merge(&other);
        let text = "2 .txt files, first notes.txt; 1 hidden or system files, first .x?y";
        assert_eq!((left_out.total(), left_out.to_string().as_str()), (3, text));
        let json = serde_json::to_string(&left_out).unwrap();
        assert_eq!(serde_json::from_str::<LeftOut>(&json).unwrap(), left_out);
        for number in 0..50 {
            left_out.add(Reason::Extension(&format!("e{number}")), "x");
        }
        assert_eq!((left_out.kinds().count(), left_out.total()), (MAX_KINDS + 1, 53));
    }
}
