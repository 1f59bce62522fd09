//! Features of another network, such as MoCo's, from a file: one row for each image of the validation set, in its order.

use codinet_trainer::sys::error::{Error, Exit, Result};
use std::path::Path;
use tch::{Kind, Tensor};

/// Reads `[rows, F]` as fp32 from a `.npy` or a `.safetensors` file; `FILE:NAME` is a tensor of a file with several.
///
/// # Errors
/// A file that cannot be read, another number of rows, numbers that are not finite.
pub fn read(what: &str, rows: usize) -> Result<Tensor> {
    let refuse = |why: String| Err(Error::new(Exit::Data, format!("{what}: {why}")));
    let (path, name) = match what.split_once(".safetensors:") {
        Some((stem, name)) => (format!("{stem}.safetensors"), Some(name)),
        None => (what.to_owned(), None),
    };
    if !Path::new(&path).is_file() {
        return refuse("no such file".into());
    }
    let one_line = |error: tch::TchError| error.to_string().replace('\n', " ");
    let tensor = if path.ends_with(".npy") {
        if let Err(why) = check_npy(&path) {
            return refuse(format!("cannot be read: {why}"));
        }
        match Tensor::read_npy(&path) {
            Ok(tensor) => tensor,
            Err(error) => return refuse(format!("cannot be read: {}", one_line(error))),
        }
    } else if path.ends_with(".safetensors") {
        let mut tensors = match Tensor::read_safetensors(&path) {
            Ok(tensors) => tensors,
            Err(error) => return refuse(format!("cannot be read: {}", one_line(error))),
        };
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
        match name {
            Some(name) => tensors.retain(|(other, _)| other == name),
            None if tensors.len() > 1 => {
                return refuse(format!("holds {}; name one of them: {path}:{}", names.join(", "), names[0]));
            }
            None => {}
        }
        match tensors.pop() {
            Some((_, tensor)) => tensor,
            None => return refuse(format!("no such tensor; it holds {}", names.join(", "))),
        }
    } else {
        return refuse("features come from a .npy or a .safetensors file".into());
    };
    let size = tensor.size();
    if size.len() != 2 || size[1] == 0 {
        return refuse(format!("holds an array of shape {size:?}, not a row of features for each image"));
    }
    if size[0] as usize != rows {
        return refuse(format!("has {} rows; the validation set has {rows} images", size[0]));
    }
    let tensor = tensor.to_kind(Kind::Float);
    if !bool::try_from(tensor.isfinite().all()).expect("a bool") {
        return refuse("holds numbers that are not finite".into());
    }
    Ok(tensor)
}

/// An error for a `.npy` file that is shorter than its header says; tch 0.24 reads past its end.
fn check_npy(path: &str) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let no_array = || "no .npy file".to_owned();
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(no_array)?;
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (u32::from_le_bytes([*a, *b, 0, 0]), rest),
        [_, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]), rest),
        _ => return Err(no_array()),
    };
    let (header, data) = rest.split_at_checked(length as usize).ok_or_else(no_array)?;
    let header = String::from_utf8_lossy(header);
    let after = |key: &str, open: char, close: char| -> Option<&str> {
        let value = header.split_once(&format!("'{key}'"))?.1.split_once(open)?.1;
        Some(value.split_once(close)?.0)
    };
    let item = after("descr", '\'', '\'').ok_or_else(no_array)?;
    let item =
        item.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().map_err(|_| no_array())?;
    let sides = after("shape", '(', ')').ok_or_else(no_array)?;
    let sides = sides.split(',').map(str::trim).filter(|side| !side.is_empty());
    let bytes = sides.map(str::parse::<usize>).try_fold(item, |all, side| all.checked_mul(side.ok()?));
    match bytes {
        Some(bytes) if bytes <= data.len() => Ok(()),
        _ => Err(format!("it is cut short: {} bytes of numbers are there", data.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_or_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let rows = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).view([3, 2]);
        rows.write_npy(path("a.npy")).unwrap();
        rows.to_kind(Kind::Double).write_npy(path("b.npy")).unwrap();
        Tensor::write_safetensors(&[("x", &rows), ("y", &(&rows * 2.0))], path("c.safetensors")).unwrap();
        for name in ["a.npy", "b.npy", "c.safetensors:x"] {
            assert_eq!(read(&path(name), 3).unwrap(), rows, "{name}");
        }
        let message = |name: &str, rows: usize| read(&path(name), rows).unwrap_err().message;
        assert!(message("a.npy", 4).contains("has 3 rows; the validation set has 4 images"));
        assert!(message("c.safetensors", 3).contains("holds x, y; name one of them"));
        assert!(message("c.safetensors:z", 3).contains("no such tensor; it holds x, y"));
        assert!(message("lost.npy", 3).contains("no such file"));
        (&rows / 0.0).write_npy(path("d.npy")).unwrap();
        assert!(message("d.npy", 3).contains("not finite"));
        rows.view([6]).write_npy(path("e.npy")).unwrap();
        assert!(message("e.npy", 6).contains("shape [6]"));
        let bytes = std::fs::read(path("a.npy")).unwrap();
        std::fs::write(path("f.npy"), &bytes[..bytes.len() - 4]).unwrap();
        assert!(message("f.npy", 3).contains("cut short: 20 bytes"), "{}", message("f.npy", 3));
        std::fs::write(path("g.npy"), b"no array").unwrap();
        assert!(message("g.npy", 3).contains("cannot be read"));
        std::fs::write(path("h.txt"), b"").unwrap();
        assert!(message("h.txt", 3).contains(".npy or a .safetensors"));
    }
}
