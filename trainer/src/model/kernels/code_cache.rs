//! Compiled kernels on disk, so that only the first start on a machine compiles them.

use crate::env;
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of the checksum at the start of a file.
const CHECKSUM: usize = 32;

/// The user's folder for what can be made again.
pub fn folder() -> Option<PathBuf> {
    let cache = env::get(env::XDG_CACHE_HOME).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::get(env::HOME)?).join(".cache")));
    cache.map(|cache| cache.join("codinet"))
}

/// The code that `folder` has for `key`: everything that decides what the compiler makes. Otherwise the code that `compile`
/// makes, which is then kept there. A damaged file is compiled again, and a folder that cannot be written has no effect.
pub fn get_or_compile(
    folder: Option<&Path>,
    key: &[&str],
    compile: impl FnOnce() -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let Some(folder) = folder else { return compile() };
    let path = folder.join(format!("kernels-{}", name(key)));
    if let Some(code) = fs::read(&path).ok().and_then(checked) {
        return Ok(code);
    }
    let code = compile()?;
    let _ = keep(folder, &path, &code);
    Ok(code)
}

/// A file name that depends on every part of the key.
fn name(key: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in key {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// A file's code, if its checksum is right.
fn checked(file: Vec<u8>) -> Option<Vec<u8>> {
    let (checksum, code) = file.split_at_checked(CHECKSUM)?;
    (Sha256::digest(code).as_slice() == checksum).then(|| code.to_vec())
}

/// Ranks of a host may do so at the same time: each writes its own file and renames it.
fn keep(folder: &Path, path: &Path, code: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let own = path.with_extension(std::process::id().to_string());
    fs::write(&own, [Sha256::digest(code).as_slice(), code].concat())?;
    fs::rename(&own, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_compiled_once_for_a_key_and_again_if_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let get = |key: &[&str], code: &str| {
            get_or_compile(Some(folder.path()), key, || Ok(code.as_bytes().to_vec())).unwrap()
        };
        assert_eq!(get(&["source", "sm_90"], "first"), b"first");
        assert_eq!(get(&["source", "sm_90"], "second"), b"first");
        assert_eq!(get(&["source", "sm_80"], "other"), b"other");
        assert_eq!(get(&["sources", "m_90"], "split"), b"split");
        let path = folder.path().join(format!("kernels-{}", name(&["source", "sm_90"])));
        let mut file = fs::read(&path).unwrap();
        *file.last_mut().unwrap() ^= 1;
        fs::write(&path, file).unwrap();
        assert_eq!(get(&["source", "sm_90"], "third"), b"third");
        let failed = get_or_compile(Some(folder.path()), &["wrong"], || Err("line 3".into()));
        assert_eq!(failed.unwrap_err(), "line 3");
        assert_eq!(get_or_compile(Some(Path::new("/proc/none")), &["a"], || Ok(vec![1])).unwrap(), [1]);
    }
}
