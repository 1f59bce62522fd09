//! A data set that cannot be opened: the key, the path, and the command that makes the data set.

use crate::sys::error::Error;
use crate::text::shell_quote;
use codinet_dataloader::import::ENTRIES;
use std::path::{Path, absolute};

/// The error of opening `pattern`, the value of the key `key`.
pub(super) fn explain(key: &str, pattern: &str, error: codinet_dataloader::Error) -> Error {
    let missing = match &error {
        codinet_dataloader::Error::Empty { what, .. } => Some(*what),
        _ => None,
    };
    let Some(what) = missing.filter(|_| !pattern.contains("://")) else {
        let error = Error::from(error);
        return Error { message: format!("{key}: {error}"), ..error };
    };
    let resolved = absolute(pattern).unwrap_or_else(|_| pattern.into());
    let lost = resolved.ancestors().filter(|path| !path.exists()).last().filter(|_| !is_pattern(pattern));
    let lost = match lost {
        Some(lost) if lost == resolved => " (no such folder)".to_owned(),
        Some(lost) => format!(" (there is no {})", lost.display()),
        None => String::new(),
    };
    let message = format!(
        "{key}: {what} at {}{lost}; set it to a folder of .tar shards or of class folders, or import the data set: {}",
        resolved.display(),
        import_command(pattern)
    );
    Error { message, ..Error::from(error) }
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '[', '{'])
}

/// The command that writes a data set to `pattern`, a folder of a split such as `data/cifar10/train`.
fn import_command(pattern: &str) -> String {
    let path = Path::new(pattern);
    let folder = if is_pattern(pattern) { path.parent().unwrap_or(path) } else { path };
    let named = |name: &str| path.components().any(|part| part.as_os_str() == name);
    let published = ENTRIES.iter().find(|entry| named(entry.name));
    let (name, output) = match published {
        Some(entry) => (entry.name, folder.parent().unwrap_or(folder)),
        None => ("imagefolder", folder),
    };
    let output = shell_quote(&output.display().to_string());
    format!("codinet-data import {name} --src FOLDER --output {output}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn import_command_follows_the_path() {
        for (pattern, command) in [
            ("data/imagenet/train", "codinet-data import imagenet --src FOLDER --output data/imagenet"),
            ("/big/cifar10/test", "codinet-data import cifar10 --src FOLDER --output /big/cifar10"),
            (
                "data/fashion-mnist/train/*.tar",
                "codinet-data import fashion-mnist --src FOLDER --output data/fashion-mnist",
            ),
            ("my photos/train", "codinet-data import imagefolder --src FOLDER --output 'my photos/train'"),
        ] {
            assert_eq!(import_command(pattern), command);
        }
    }
}
