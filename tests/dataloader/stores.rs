//! Shards in stores, read from real servers on loopback: a web server and one that speaks S3's protocol.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use codinet_dataloader::{Cache, CopyFolder, Dataset, IndexState, Options, ShardWriter};

use crate::data::{flat, open, write_flat, write_images};
use crate::program::{codinet_data, data_error, stdout};
use crate::server::{Behaviour, Server, files, s3};

const RANGE: &str = "x-{000000..000002}.tar";

fn impatient() -> Options {
    Options { timeout: Duration::from_secs(2), ..Options::default() }
}

fn url(server: &Server, path: &str) -> String {
    format!("http://{}/{path}", server.address)
}

/// The one line that opening ends with.
fn open_error(pattern: &str, options: &Options) -> String {
    let message = Dataset::open_with(pattern, options).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Reads every sample, by four threads at once, and compares it with the same of `local`.
fn assert_same(remote: &Dataset, local: &Dataset) {
    assert_eq!((remote.len(), remote.fingerprint()), (local.len(), local.fingerprint()));
    thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || {
                let mut ours = vec![1; 5];
                let mut theirs = Vec::new();
                for sample in (0..local.len()).filter(|sample| sample % 4 == part) {
                    let info = remote.read(sample, &mut ours).unwrap();
                    let expected = local.read(sample, &mut theirs).unwrap();
                    assert_eq!((info.key, info.label, &ours), (expected.key, expected.label, &theirs));
                }
            });
        }
    });
}

/// `count` shards of 100 kB of noise a sample, two samples each.
fn write_large(folder: &Path, count: u32) {
    let mut writer = ShardWriter::new(folder, "x", 2).unwrap();
    for sample in 0..2 * count {
        let noise: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(sample + 7) >> 3) as u8).collect();
        writer.write(&format!("{sample}"), "jpg", &noise, sample).unwrap();
    }
    writer.finish().unwrap();
}

fn remove_indices(folder: &Path) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "idx") {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_web_servers_shards_are_the_files() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let local = open(folder.path()).unwrap();
    let server = files(folder.path(), Behaviour::default());

    let remote = Dataset::open(&url(&server, RANGE)).unwrap();
    assert_same(&remote, &local);
    assert_eq!(remote.classes(), Some(10), "by dataset.json");
    assert!(remote.shards().all(|shard| shard.index == IndexState::Read), "the .idx files in their folder");
    let shard = remote.sample_info(9).unwrap().shard.to_str().unwrap().to_owned();
    assert_eq!(shard, url(&server, "x-000002.tar"));

    // Without indices: one request scans a small shard. An index of another shard isn't taken.
    remove_indices(folder.path());
    fs::write(folder.path().join("x-000001.idx"), "codinet-index 2 1 2.000000000 0\n").unwrap();
    let before = server.behaviour.asked("GET /x-000000.tar");
    let remote = Dataset::open(&url(&server, RANGE)).unwrap();
    assert!(remote.shards().all(|shard| shard.index == IndexState::Unsaved));
    assert_eq!(server.behaviour.asked("GET /x-000000.tar"), before + 1);
    assert_same(&remote, &local);

    let text = stdout(&codinet_data(&["index", &url(&server, "x-000002.tar")]));
    assert!(
        text.starts_with(
            "scanned, but the folder can't be written, so the index wasn't saved: 1 shard, 2 samples, "
        ),
        "{text}"
    );
    let list = r#"{"wids_version": 1, "shardlist": [{"url": "x-000001.tar", "nsamples": 4}]}"#;
    fs::write(folder.path().join("list.json"), list).unwrap();
    assert_eq!(Dataset::open(&url(&server, "list.json")).unwrap().sample_info(0).unwrap().key, "k004");

    for pattern in ["", "x-*.tar"] {
        let message = open_error(&url(&server, pattern), &impatient());
        assert!(message.contains("can't list") && message.contains("list"), "{message}");
    }
    let message = open_error(&url(&server, "x-{000002..000003}.tar"), &impatient());
    assert!(message.contains("/x-000003.tar: not found; check the URL"), "{message}");
}

#[test]
fn failures_that_pass_are_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let local = open(folder.path()).unwrap();
    let server = files(folder.path(), Behaviour::default());
    server.behaviour.busy.store(2, Ordering::Relaxed);
    let remote = Dataset::open(&url(&server, RANGE)).unwrap();
    let mut encoded = Vec::new();
    let before = server.behaviour.asked("GET");
    server.behaviour.busy.store(2, Ordering::Relaxed);
    remote.read(3, &mut encoded).unwrap();
    assert_eq!((server.behaviour.asked("GET"), &encoded), (before + 3, &flat(3)));
    server.behaviour.torn.store(2, Ordering::Relaxed);
    remote.read(4, &mut encoded).unwrap();
    assert_eq!((server.behaviour.asked("GET"), &encoded), (before + 6, &flat(4)));
    assert_same(&remote, &local);
}

#[test]
fn failures_that_stay_end_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let start = Instant::now();
    let server = files(folder.path(), Behaviour::default());
    server.behaviour.busy.store(usize::MAX, Ordering::Relaxed);
    let message = open_error(&url(&server, RANGE), &impatient());
    assert!(message.contains(&server.address) && message.contains("503 Service Unavailable"), "{message}");

    server.behaviour.busy.store(0, Ordering::Relaxed);
    let remote = Dataset::open_with(&url(&server, RANGE), &impatient()).unwrap();
    let mut encoded = Vec::new();
    server.behaviour.delay.store(60_000, Ordering::Relaxed);
    let message = remote.read(5, &mut encoded).unwrap_err().to_string();
    assert!(message.contains("/x-000001.tar: no whole answer in 2s"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(30), "it hangs");
    server.behaviour.delay.store(0, Ordering::Relaxed);

    let elsewhere = tempfile::tempdir().unwrap();
    write_images(elsewhere.path(), &[("another.png", flat(1))]);
    fs::copy(elsewhere.path().join("x-000000.tar"), folder.path().join("x-000002.tar")).unwrap();
    let message = remote.read(9, &mut encoded).unwrap_err().to_string();
    assert!(message.contains("/x-000002.tar: it has changed"), "{message}");

    drop(server);
    let message = remote.read(0, &mut encoded).unwrap_err().to_string();
    assert!(message.contains("/x-000000.tar: no connection"), "{message}");

    let simple = files(folder.path(), Behaviour { whole_files: true, ..Behaviour::default() });
    let message = open_error(&url(&simple, RANGE), &impatient());
    assert!(message.contains("doesn't answer requests for parts"), "{message}");
}

fn in_store(arguments: &[&str], environment: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codinet-data"));
    for name in ["AWS_SESSION_TOKEN", "AWS_PROFILE", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn s3_is_read_with_keys_from_the_environment() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("bucket/data/train");
    write_flat(&folder, 10);
    fs::write(folder.join("notes.txt"), "not a shard").unwrap();
    let fingerprint = open(&folder).unwrap().fingerprint();
    let server = s3(root.path(), "the-key", "the-secret");
    let endpoint = format!("http://{}", server.address);
    let with_secret = |secret, arguments: &[&str]| {
        let environment = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "the-key"),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", "us-east-1"),
        ];
        in_store(arguments, &environment)
    };
    let inspect = |pattern: &str| with_secret("the-secret", &["inspect", pattern]);
    for pattern in [
        "s3://bucket/data/train",
        "s3://bucket/data/train/x-*.tar",
        "s3://bucket/data/train/x-{000000..000002}.tar",
    ] {
        let text = stdout(&inspect(pattern));
        assert!(text.contains(&fingerprint) && text.contains("10 decoded, 0 bad"), "{pattern}:\n{text}");
    }
    let text = stdout(&with_secret("the-secret", &["index", "s3://bucket/data/train/"]));
    assert!(text.starts_with("already indexed: 3 shards, 10 samples, "), "{text}");
    remove_indices(&folder);
    let text = stdout(&with_secret("the-secret", &["index", "s3://bucket/data/train"]));
    assert!(
        text.starts_with(
            "scanned, but the folder can't be written, so the index wasn't saved: 3 shards, 10 samples"
        ),
        "{text}"
    );

    let error = data_error(&inspect("s3://bucket/data/train/y-{0..1}.tar"));
    assert!(error.contains("s3://bucket/data/train/y-0.tar: not found"), "{error}");
    assert!(data_error(&inspect("s3://bucket/elsewhere")).contains("no shards at 's3://bucket/elsewhere'"));
    for pattern in ["s3://bucket/data/train", "s3://bucket/data/train/x-{000000..000002}.tar"] {
        let error = data_error(&with_secret("wrong-secret", &["inspect", pattern]));
        assert!(error.contains("access denied; set AWS_ACCESS_KEY_ID"), "{error}");
        assert!(error.contains("s3://bucket/data/train") && !error.contains("secret"), "{error}");
        assert!(!error.contains("the-key"), "{error}");
    }
    // One shard more than dataset.json counts, which a folder must not have.
    fs::copy(folder.join("x-000000.tar"), folder.join("x-000003.tar")).unwrap();
    assert!(data_error(&inspect("s3://bucket/data/train")).contains("expected 3 shards, found 4"));
}

/// 20 MB are three parts of an object.
#[test]
fn files_of_any_size_are_copied_to_s3() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("bucket")).unwrap();
    let server = s3(root.path(), "the-key", "the-secret");
    let noise: Vec<u8> = (0..20_000_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(root.path().join("large"), &noise).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "stores::copying_process"])
        .env(PATTERN, "s3://bucket/copies/")
        .env(CACHE, root.path())
        .env("AWS_ENDPOINT_URL", format!("http://{}", server.address))
        .env("AWS_ACCESS_KEY_ID", "the-key")
        .env("AWS_SECRET_ACCESS_KEY", "the-secret")
        .env("AWS_REGION", "us-east-1")
        .status();
    assert!(status.unwrap().success());
    assert!(fs::read(root.path().join("bucket/copies/a/large")).unwrap() == noise);
    assert!(fs::read(root.path().join("fetched")).unwrap() == noise);
}

#[test]
#[ignore = "run by the test of copies, as another process"]
fn copying_process() {
    let [url, local] = [PATTERN, CACHE].map(|name| std::env::var(name).unwrap());
    let folder = CopyFolder::open(&url, Duration::from_secs(20)).unwrap();
    assert_eq!(folder.read("a/small").unwrap(), None);
    assert!(folder.list("a").unwrap().is_empty());
    let file = fs::File::open(Path::new(&local).join("large")).unwrap();
    for name in ["a/large", "a/large", "b/large"] {
        folder.upload(name, &file).unwrap();
    }
    folder.write("a/small", b"small").unwrap();
    assert_eq!(folder.read("a/small").unwrap().unwrap(), b"small");
    assert_eq!(folder.read_start("a/small", 3).unwrap().unwrap(), b"sma");
    assert_eq!(folder.list("a").unwrap(), ["large", "small"]);
    assert_eq!(folder.list("").unwrap(), ["a", "b"]);
    folder.download("a/large", &Path::new(&local).join("fetched")).unwrap();
    folder.remove_folder("b").unwrap();
    folder.remove("b/large").unwrap();
    assert_eq!(folder.list("").unwrap(), ["a"]);
    let error = folder.download("b/large", &Path::new(&local).join("none")).unwrap_err().to_string();
    assert!(error.contains("s3://bucket/copies/b/large: not found"), "{error}");
}

/// The client is real; the server only has Google's paths.
#[test]
fn google_cloud_storages_client_is_set_by_the_environment() {
    let root = tempfile::tempdir().unwrap();
    write_flat(&root.path().join("bucket/train"), 10);
    let server = files(root.path(), Behaviour::default());
    let endpoint = format!("http://{}", server.address);
    let account = r#"{"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": true}"#;
    let environment = [("GOOGLE_BASE_URL", endpoint.as_str()), ("GOOGLE_SERVICE_ACCOUNT_KEY", account)];
    let pattern = format!("gs://bucket/train/{RANGE}");
    let text = stdout(&in_store(&["inspect", &pattern], &environment));
    assert!(text.contains("samples  10") && text.contains("10 decoded, 0 bad"), "{text}");
}

fn with_cache(folder: &Path, limit_bytes: u64) -> Options {
    Options { cache: Some(Cache { folder: folder.to_owned(), limit_bytes }), ..Options::default() }
}

/// The shards that are whole in the cache, by their number.
fn cached(folder: &Path) -> Vec<u32> {
    let names = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut shards: Vec<u32> =
        names.filter(|name| name.ends_with(".tar")).map(|name| name[2..8].parse().unwrap()).collect();
    shards.sort();
    shards
}

#[test]
fn the_cache_keeps_what_was_read_last() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    write_large(folder.path(), 3);
    let local = open(folder.path()).unwrap();
    let size = local.shards().next().unwrap().bytes;
    let server = files(folder.path(), Behaviour::default());
    let remote =
        Dataset::open_with(&url(&server, RANGE), &with_cache(cache.path(), 2 * size + 2000)).unwrap();
    assert!(cached(cache.path()).is_empty(), "opening fetches only indices");
    let mut encoded = Vec::new();
    for (sample, kept) in [(0, vec![0]), (2, vec![0, 1]), (1, vec![0, 1]), (4, vec![0, 2]), (3, vec![1, 2])] {
        remote.read(sample, &mut encoded).unwrap();
        assert_eq!(cached(cache.path()), kept, "after sample {sample}");
    }
    assert_same(&remote, &local); // all the while pushing each other out

    // Copies need no server, and another process fetches nothing again.
    remote.read(4, &mut encoded).unwrap();
    remote.read(2, &mut encoded).unwrap();
    let fetched = server.behaviour.asked("GET /x-000001.tar");
    let again = Dataset::open_with(&url(&server, RANGE), &with_cache(cache.path(), 2 * size + 2000)).unwrap();
    again.read(3, &mut encoded).unwrap();
    assert_eq!(server.behaviour.asked("GET /x-000001.tar"), fetched);
    drop(server);
    for sample in [2, 3, 4, 5] {
        let key = remote.read(sample, &mut encoded).unwrap().key.to_owned();
        assert_eq!(key, sample.to_string());
    }
    assert!(remote.read(0, &mut encoded).unwrap_err().to_string().contains("no connection"));
    let leftovers = cache.path().read_dir().unwrap().filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "part")
    });
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn a_shard_without_room_is_read_from_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    write_large(folder.path(), 2);
    let server = files(folder.path(), Behaviour::default());
    let pattern = url(&server, "x-{000000..000001}.tar");
    let remote = Dataset::open_with(&pattern, &with_cache(cache.path(), 100_000)).unwrap();
    assert_same(&remote, &open(folder.path()).unwrap());
    assert!(cached(cache.path()).is_empty());
}

const PATTERN: &str = "CODINET_TEST_PATTERN";
const CACHE: &str = "CODINET_TEST_CACHE";

#[test]
#[ignore = "run by the tests of the cache, as another process"]
fn another_process() {
    let [pattern, cache] = [PATTERN, CACHE].map(|name| std::env::var(name).unwrap());
    let options = with_cache(Path::new(&cache), 1 << 30);
    let dataset = Dataset::open_with(&pattern, &options).unwrap();
    let mut encoded = Vec::new();
    for sample in 0..dataset.len() {
        dataset.read(sample, &mut encoded).unwrap();
    }
}

fn start_another(pattern: &str, cache: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "stores::another_process"])
        .env(PATTERN, pattern)
        .env(CACHE, cache)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn processes_fetch_each_shard_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    write_large(folder.path(), 3);
    let server = files(folder.path(), Behaviour::default());
    server.behaviour.delay.store(50, Ordering::Relaxed); // so that all of them ask before one has it
    let others: Vec<_> = (0..3).map(|_| start_another(&url(&server, RANGE), cache.path())).collect();
    for mut other in others {
        assert!(other.wait().unwrap().success());
    }
    for shard in 0..3 {
        let whole = format!("GET /x-00000{shard}.tar bytes=0-");
        assert_eq!(server.behaviour.asked(&whole), 1, "{:?}", server.behaviour.requests.lock().unwrap());
    }
}

#[test]
fn a_killed_fetch_leaves_nothing_that_is_taken_for_a_shard() {
    let folder = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    write_large(folder.path(), 2);
    let server = files(folder.path(), Behaviour::default());
    let pattern = url(&server, "x-{000000..000001}.tar");
    let options = with_cache(cache.path(), 1 << 30);
    let dataset = Dataset::open_with(&pattern, &options).unwrap();
    server.behaviour.delay.store(1000, Ordering::Relaxed);
    let mut other = start_another(&pattern, cache.path());
    let part = || {
        let paths = cache.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
        paths.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "part"))
    };
    while part().is_none() {
        assert!(other.try_wait().unwrap().is_none(), "it ended before it could be killed");
        thread::sleep(Duration::from_millis(1));
    }
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(part().is_some() && cached(cache.path()).is_empty());
    server.behaviour.delay.store(0, Ordering::Relaxed);
    // Sample 3 is in the other shard: fetching that one clears the rubbish away.
    let mut encoded = Vec::new();
    dataset.read(3, &mut encoded).unwrap();
    assert_eq!((part(), cached(cache.path())), (None, vec![1]));
    assert_same(&dataset, &open(folder.path()).unwrap());
    assert_eq!(cached(cache.path()), [0, 1]);
}
