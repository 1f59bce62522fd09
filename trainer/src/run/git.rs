//! The git commit of the folder that a program runs in, read from git's files.

use std::fs;
use std::path::Path;

/// The commit that is checked out in the repository around `folder`, if there is one.
pub(super) fn commit(folder: &Path) -> Option<String> {
    let git = folder.ancestors().map(|folder| folder.join(".git")).find(|git| git.exists())?;
    let read = |path: &Path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    // A worktree has a file that names its folder, and the branches are in the main one's.
    let git = if git.is_file() { git.parent()?.join(read(&git)?.strip_prefix("gitdir: ")?) } else { git };
    let shared = read(&git.join("commondir")).map_or_else(|| git.clone(), |path| git.join(path));
    let head = read(&git.join("HEAD"))?;
    let Some(branch) = head.strip_prefix("ref: ") else { return Some(head) };
    read(&shared.join(branch)).or_else(|| {
        let packed = read(&shared.join("packed-refs"))?;
        packed.lines().find_map(|line| line.strip_suffix(branch)?.strip_suffix(' ').map(str::to_owned))
    })
}

#[cfg(test)]
mod tests {
    use super::commit;
    use std::fs;

    #[test]
    fn commit_is_found_on_a_branch_packed_or_not_and_detached() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a/b");
        let git = folder.path().join(".git");
        fs::create_dir_all(&below).unwrap();
        fs::create_dir_all(git.join("refs/heads")).unwrap();
        fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(git.join("packed-refs"), "# pack-refs\n1234 refs/heads/other\nabcd refs/heads/main\n")
            .unwrap();
        assert_eq!(commit(&below).as_deref(), Some("abcd"));
        fs::write(git.join("refs/heads/main"), "ef01\n").unwrap();
        assert_eq!(commit(&below).as_deref(), Some("ef01"));
        fs::write(git.join("HEAD"), "9999\n").unwrap();
        assert_eq!(commit(&below).as_deref(), Some("9999"));
    }
}
