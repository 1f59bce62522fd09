//! `codinet-data fetch`: what it prints, and downloads that are resumed, refused or checked.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use codinet_dataloader::import::{Access, ENTRIES, FetchStatus, PublishedFile, fetch};
use sha2::{Digest, Sha256};

use crate::program::{codinet_data, data_error, stdout};

const NAME: &str = "x.tar.gz";

/// Noise that differs from part to part.
fn contents(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// The description of a file of these bytes.
fn publish(bytes: &[u8]) -> PublishedFile {
    let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    PublishedFile { name: NAME, bytes: bytes.len() as u64, md5: "", sha256: sha256.leak(), optional: false }
}

/// Fetches it, and returns the result and the bytes that were in the folder before.
fn fetch_file(file: &PublishedFile, base: &str, folder: &Path) -> (Result<FetchStatus, String>, Option<u64>) {
    let first = Cell::new(None);
    let status = fetch(file, base, folder, &|bytes| first.set(first.get().or(Some(bytes))));
    (status.map_err(|error| error.to_string()), first.get())
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn fetched_file_is_the_published_one_and_resumes() {
    let temporary = tempfile::tempdir().unwrap();
    let mirror = temporary.path().join("mirror");
    let folder = temporary.path().join("new/folder");
    fs::create_dir(&mirror).unwrap();
    let bytes = contents(1000);
    let file = publish(&bytes);
    fs::write(mirror.join(NAME), &bytes).unwrap();
    let base = mirror.to_str().unwrap();
    assert_eq!(fetch_file(&file, base, &folder), (Ok(FetchStatus::Downloaded), Some(0)));
    assert_eq!(fs::read(folder.join(NAME)).unwrap(), bytes);
    assert_eq!(names_in(&folder), [NAME]);
    assert_eq!(fetch_file(&file, "nowhere", &folder), (Ok(FetchStatus::AlreadyComplete), None));

    let folder = temporary.path().join("resumed");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("x.tar.gz.part"), &bytes[..400]).unwrap();
    assert_eq!(fetch_file(&file, base, &folder), (Ok(FetchStatus::Downloaded), Some(400)));
    assert_eq!(fs::read(folder.join(NAME)).unwrap(), bytes);
    assert_eq!(names_in(&folder), [NAME]);
}

#[test]
fn wrong_files_and_disks_leave_nothing_that_looks_complete() {
    let temporary = tempfile::tempdir().unwrap();
    let mirror = temporary.path();
    let bytes = contents(1000);
    fs::write(mirror.join(NAME), &bytes).unwrap();
    let base = mirror.to_str().unwrap();
    let folder = mirror.join("folder");
    let rejected = |file: &PublishedFile, base: &str, folder: &Path, parts: &[&str]| {
        let error = fetch_file(file, base, folder).0.unwrap_err();
        assert!(!error.contains('\n') && parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let mut other = bytes.clone();
    other[7] ^= 1;
    let other = publish(&other);
    rejected(&other, base, &folder, &[NAME, "its SHA-256 is", other.sha256, "removed"]);
    assert!(names_in(&folder).is_empty());
    // A partial file of something else is detected in the same way, and the next call starts from 0.
    fs::write(folder.join("x.tar.gz.part"), &contents(700)[300..]).unwrap();
    rejected(&publish(&bytes), base, &folder, &["its SHA-256 is"]);
    assert_eq!(fetch_file(&publish(&bytes), base, &folder), (Ok(FetchStatus::Downloaded), Some(0)));
    rejected(&other, base, &folder, &[NAME, "not the published file", "remove it"]);

    let folder = mirror.join("second");
    rejected(&publish(&contents(999)), base, &folder, &["has 1000 bytes", "999", "--mirror"]);
    rejected(&publish(&bytes), "no/such/mirror", &folder, &["no/such/mirror/x.tar.gz"]);
    assert!(names_in(&folder).is_empty());
    symlink("/dev/full", folder.join("x.tar.gz.part")).unwrap();
    rejected(&publish(&bytes), base, &folder, &["cannot write", "x.tar.gz.part", "No space left"]);
    assert!(!folder.join(NAME).exists());
    rejected(&publish(&bytes), base, &mirror.join(NAME).join("folder"), &["cannot create folder", NAME]);
}

#[test]
fn fetch_prints_files_terms_and_the_next_command() {
    for (set, parts) in [
        (
            "cifar10",
            ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, 170,052,171 bytes", "sha256 c4a38c50"],
        ),
        (
            "cifar100",
            ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz, 168,513,733 bytes", "md5 03b5dce0"],
        ),
        (
            "svhn",
            [
                "http://ufldl.stanford.edu/housenumbers/extra_32x32.mat, 1,329,278,602 bytes, optional",
                "non-commercial",
            ],
        ),
        (
            "imagenet",
            ["register at https://image-net.org", "next: codinet-data import imagenet --src downloads"],
        ),
    ] {
        let text = stdout(&codinet_data(&["fetch", set]));
        assert!(parts.iter().all(|part| text.contains(part)) && text.contains("terms: "), "{text}");
        assert_eq!(text.contains("download: codinet-data fetch"), set != "imagenet", "{text}");
    }
    for wrong in [["fetch", "imagenet", "--output", "x"], ["fetch", "imagefolder", "--output", "x"]] {
        assert_eq!(codinet_data(&wrong).status.code(), Some(2));
    }
    for entry in ENTRIES {
        let Some(Access::Download { base, files }) = entry.published.map(|published| &published.access)
        else {
            continue;
        };
        let is_hex =
            |text: &str, length: usize| text.len() == length && text.chars().all(|c| c.is_ascii_hexdigit());
        assert!(base.ends_with('/'));
        assert!(files.iter().all(|file| is_hex(file.sha256, 64) && is_hex(file.md5, 32)), "{}", entry.name);
    }
}

#[test]
fn optional_files_are_fetched_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = folder.path().to_str().unwrap();
    let output = folder.path().join("downloads");
    let args = ["fetch", "svhn", "--mirror", mirror, "--output", output.to_str().unwrap()];
    for (more, expected) in [(&[][..], "fetching 2 files of 234.9"), (&["--all"], "fetching 3 files of 1.47")]
    {
        let printed = codinet_data(&[&args, more].concat());
        let text = String::from_utf8(printed.stdout.clone()).unwrap();
        assert!(text.contains(expected) && !text.contains("next:"), "{text}");
        assert!(data_error(&printed).contains("train_32x32.mat"));
    }
}

#[cfg(not(feature = "remote"))]
#[test]
fn build_without_stores_names_other_means() {
    let folder = tempfile::tempdir().unwrap();
    let printed = codinet_data(&["fetch", "cifar10", "--output", folder.path().to_str().unwrap()]);
    let stderr = String::from_utf8(printed.stderr).unwrap();
    assert_eq!(printed.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("without the feature `remote`") && stderr.contains("curl"), "{stderr}");
}

#[cfg(feature = "store-tests")]
mod from_servers {
    use super::*;
    use crate::server::{Behaviour, files};
    use std::process::{Command, Stdio};
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    /// Bytes of one request.
    const PART: usize = 8 << 20;

    #[test]
    fn partial_download_is_completed_by_ranges() {
        let temporary = tempfile::tempdir().unwrap();
        let bytes = contents(2 * PART + 1000);
        fs::create_dir(temporary.path().join("~kriz")).unwrap(); // as CIFAR's
        fs::write(temporary.path().join("~kriz").join(NAME), &bytes).unwrap();
        let folder = temporary.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("x.tar.gz.part"), &bytes[..PART + 5]).unwrap();
        let server = files(temporary.path(), Behaviour::default());
        server.behaviour.torn.store(1, Ordering::Relaxed);
        let base = format!("http://{}/~kriz", server.address);
        let resumed = Some(PART as u64 + 5);
        assert_eq!(fetch_file(&publish(&bytes), &base, &folder), (Ok(FetchStatus::Downloaded), resumed));
        assert_eq!(fs::read(folder.join(NAME)).unwrap(), bytes);
        let requests = server.behaviour.requests.lock().unwrap();
        let asked: Vec<&String> = requests.iter().filter(|request| request.starts_with("GET")).collect();
        let range = |from: usize, to: usize| format!("GET /~kriz/x.tar.gz bytes={from}-{}", to - 1);
        let first = range(PART + 5, 2 * PART + 5);
        let second = range(2 * PART + 5, bytes.len());
        assert_eq!((asked.len(), asked[0], asked[2]), (3, &first, &second), "{asked:?}");
        let end = first.rsplit('-').next().unwrap();
        assert!(asked[1].ends_with(&format!("-{end}")), "the rest of an answer that broke off: {asked:?}");
    }

    #[test]
    fn server_without_ranges_sends_the_whole_file() {
        let temporary = tempfile::tempdir().unwrap();
        let bytes = contents(PART + 1000);
        fs::write(temporary.path().join(NAME), &bytes).unwrap();
        let folder = temporary.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("x.tar.gz.part"), &bytes[..700]).unwrap();
        let server = files(temporary.path(), Behaviour { whole_files: true, ..Behaviour::default() });
        let base = format!("http://{}/", server.address);
        assert_eq!(fetch_file(&publish(&bytes), &base, &folder).0, Ok(FetchStatus::Downloaded));
        assert_eq!(fs::read(folder.join(NAME)).unwrap(), bytes);
        let file = PublishedFile { name: "lost", ..publish(&bytes) };
        let error = fetch_file(&file, &base, &folder).0.unwrap_err();
        assert!(error.contains("/lost: not found; check the URL"), "{error}");
    }

    /// The file has the published size, but not the contents, so that the end is an error.
    #[test]
    fn killed_fetch_resumes_where_it_stopped() {
        let temporary = tempfile::tempdir().unwrap();
        let published = fs::File::create(temporary.path().join("cifar-100-binary.tar.gz")).unwrap();
        published.set_len(168_513_733).unwrap();
        let server = files(temporary.path(), Behaviour::default());
        server.behaviour.delay.store(50, Ordering::Relaxed);
        let base = format!("http://{}", server.address);
        let folder = temporary.path().join("folder");
        let args = ["fetch", "cifar100", "--mirror", &base, "--output", folder.to_str().unwrap()];
        let mut killed = Command::new(env!("CARGO_BIN_EXE_codinet-data"))
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let partial = folder.join("cifar-100-binary.tar.gz.part");
        let start = Instant::now();
        while fs::metadata(&partial).map_or(0, |partial| partial.len()) < 3 * PART as u64 {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing was downloaded");
            std::thread::sleep(Duration::from_millis(5));
        }
        killed.kill().unwrap();
        killed.wait().unwrap();
        let kept = fs::metadata(&partial).unwrap().len();
        assert!(kept < 168_513_733);
        server.behaviour.delay.store(0, Ordering::Relaxed);
        let requests = server.behaviour.requests.lock().unwrap().len();
        let error = data_error(&codinet_data(&args));
        assert!(error.contains("its SHA-256 is") && error.contains("58a81ae1"), "{error}");
        assert!(names_in(&folder).is_empty(), "{:?}", names_in(&folder));
        let requests = server.behaviour.requests.lock().unwrap()[requests..].to_vec();
        let first = requests.iter().find(|request| request.starts_with("GET")).unwrap();
        assert!(first.contains(&format!("bytes={kept}-")), "{first}, {kept} bytes were kept");
    }
}
