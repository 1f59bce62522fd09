//! Files for TensorBoard's embedding projector: vectors and their labels as TSV, and `projector_config.pbtxt` in the run
//! directory, which lists them.

use super::write_atomically;
use crate::run_dir::TENSORBOARD;
use crate::sys::error::{Error, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Folders of a log directory that have a folder for each tensor: a run's own and its analysis's.
const FOLDERS: [&str; 2] = [TENSORBOARD, "analysis/tensorboard"];

/// Writes `vectors`, of `width` numbers each, and for each a row of `labels` under the headings `columns`, into the folder `name`
/// of `folder` in `logs`; `name` is the tensor's name in the projector. Other tensors of `logs` stay in its list.
///
/// # Errors
/// Files that cannot be written.
pub fn write(
    logs: &Path,
    folder: &str,
    name: &str,
    vectors: &[f32],
    width: usize,
    columns: &[&str],
    labels: &[Vec<String>],
) -> Result<()> {
    let folder = logs.join(folder).join(name);
    fs::create_dir_all(&folder).map_err(|error| Error::disk("make", &folder, &error))?;
    let mut table = String::new();
    for row in vectors.chunks(width.max(1)) {
        let numbers: Vec<String> = row.iter().map(|number| format!("{number:.6}")).collect();
        let _ = writeln!(table, "{}", numbers.join("\t"));
    }
    write_atomically(&folder.join("vectors.tsv"), table.as_bytes())?;
    // The projector expects headings only with more than one column.
    let mut table = if columns.len() > 1 { columns.join("\t") + "\n" } else { String::new() };
    for row in labels {
        let clean: Vec<String> = row.iter().map(|text| text.replace(['\t', '\n'], " ")).collect();
        table += &(clean.join("\t") + "\n");
    }
    write_atomically(&folder.join("labels.tsv"), table.as_bytes())?;
    write_config(logs)
}

/// Lists every folder with vectors.
fn write_config(logs: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(logs.join(folder)).into_iter().flatten().flatten() {
            if entry.path().join("vectors.tsv").exists() {
                tensors.push((entry.file_name().to_string_lossy().into_owned(), folder));
            }
        }
    }
    tensors.sort();
    let mut config = String::new();
    for (name, folder) in tensors {
        let _ = writeln!(
            config,
            "embeddings {{\n  tensor_name: \"{name}\"\n  tensor_path: \"{folder}/{name}/vectors.tsv\"\n  \
             metadata_path: \"{folder}/{name}/labels.tsv\"\n}}"
        );
    }
    write_atomically(&logs.join("projector_config.pbtxt"), config.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_lists_all_tensors() {
        let logs = tempfile::tempdir().unwrap();
        for step in ["paths-1", "paths-2"] {
            let labels = [vec!["0".to_owned(), "a\tb".to_owned()], vec!["1".to_owned(), "c".to_owned()]];
            write(logs.path(), "tensorboard", step, &[0.5, 1.0, 0.0, 0.25], 2, &["class", "path"], &labels)
                .unwrap();
        }
        let read = |name: &str| fs::read_to_string(logs.path().join(name)).unwrap();
        assert_eq!(read("tensorboard/paths-1/vectors.tsv"), "0.500000\t1.000000\n0.000000\t0.250000\n");
        assert_eq!(read("tensorboard/paths-2/labels.tsv"), "class\tpath\n0\ta b\n1\tc\n");
        let config = read("projector_config.pbtxt");
        assert_eq!(config.matches("tensor_name").count(), 2);
        assert!(config.contains("tensor_path: \"tensorboard/paths-2/vectors.tsv\""));
    }
}
