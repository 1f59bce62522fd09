//! The loader through its public interface: shards in, batches out, and every kind of bad data on the way.
//!
//! Most images are flat greys whose one value is the sample's number, so that a pixel tells where it came from.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::index::IndexState;
use codinet_dataloader::{
    BatchPlan, Channels, Crop, Dataset, DatasetInfo, EpochOrder, Error, Loader, LoaderSpec, ShardWriter,
    Transform, eval_samples,
};

const SIZE: u32 = 12;
const PLAIN: Transform = Transform::Train { crop: Crop::None, flip: 0.0 };

fn png(pixels: &[u8]) -> Vec<u8> {
    let side = (pixels.len() as f64).sqrt() as u32;
    Encoder::new(Encoding::Png).unwrap().encode(pixels, side, side, Channels::Grey).unwrap()
}

fn flat(value: u32) -> Vec<u8> {
    png(&[value as u8; (SIZE * SIZE) as usize])
}

/// Shards of four flat images each, labelled by number modulo 10.
fn write_flat(folder: &Path, count: u32) {
    let mut writer = ShardWriter::new(folder, "x", 4).unwrap();
    for sample in 0..count {
        writer.write(&format!("k{sample:03}"), "png", &flat(sample), sample % 10).unwrap();
    }
    let (shards, samples) = writer.finish().unwrap();
    let (name, shards) = ("flat".to_owned(), u64::from(shards));
    let info = DatasetInfo {
        version: 1,
        name,
        classes: 10,
        channels: 1,
        image_size: Some(SIZE),
        samples,
        shards,
        class_names: None,
    };
    info.save(folder).unwrap();
}

/// One shard of these images, all with label 0.
fn write_images(folder: &Path, images: &[(&str, Vec<u8>)]) {
    let mut writer = ShardWriter::new(folder, "x", 100).unwrap();
    for (name, image) in images {
        let (key, extension) = name.split_once('.').unwrap();
        writer.write(key, extension, image, 0).unwrap();
    }
    writer.finish().unwrap();
}

fn open(folder: &Path) -> Result<Dataset, Error> {
    Dataset::open(folder.to_str().unwrap())
}

fn open_error(folder: &Path) -> String {
    open(folder).unwrap_err().to_string()
}

fn spec(transform: Transform, views: usize, threads: usize) -> LoaderSpec {
    LoaderSpec { transform, image_size: SIZE, channels: 1, views, seed: 5, threads, prefetch: 3 }
}

fn plan(batches: &[&[u32]]) -> std::vec::IntoIter<BatchPlan> {
    let batches: Vec<_> =
        batches.iter().map(|&samples| BatchPlan { epoch: 0, samples: samples.to_vec() }).collect();
    batches.into_iter()
}

/// The views of every sample served, [samples, M·H·W].
fn serve(
    dataset: &Arc<Dataset>,
    spec: LoaderSpec,
    plan: impl Iterator<Item = BatchPlan> + Send + 'static,
) -> Vec<Vec<u8>> {
    let bytes = spec.views * (SIZE * SIZE) as usize;
    let batches = Loader::new(dataset.clone(), spec, plan).unwrap().map(Result::unwrap);
    batches.flat_map(|batch| batch.images.chunks(bytes).map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
}

/// A sample whose every pixel differs from its neighbours, as a dataset of one.
fn textured(folder: &Path) -> Arc<Dataset> {
    write_images(folder, &[("t.png", png(&(0..SIZE * SIZE).map(|i| i as u8).collect::<Vec<_>>()))]);
    Arc::new(open(folder).unwrap())
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let dataset = open(folder.path()).unwrap();
    assert_eq!((dataset.len(), dataset.classes(), dataset.shards().len()), (10, Some(10), 3));
    let mut encoded = vec![1, 2, 3];
    for sample in [9, 0, 4, 3] {
        let info = dataset.read(sample, &mut encoded).unwrap();
        assert_eq!(encoded, flat(sample as u32));
        assert_eq!((info.key, info.label), (format!("k{sample:03}").as_str(), sample as u32));
        assert_eq!(info.shard, folder.path().join(format!("x-00000{}.tar", sample / 4)));
        assert_eq!(dataset.meta(sample), Some(info));
    }
    assert!(matches!(dataset.read(10, &mut encoded), Err(Error::InvalidArgument(_))));
    assert_eq!(dataset.meta(10), None);
}

#[test]
fn folders_globs_ranges_and_files_name_shards() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let at = |pattern: &str| Dataset::open(folder.path().join(pattern).to_str().unwrap());
    let whole = at("").unwrap().fingerprint();
    assert_eq!(whole, at("*.tar").unwrap().fingerprint());
    assert_eq!(whole, at("x-{000000..000002}.tar").unwrap().fingerprint());
    let part = at("x-{000001..000002}.tar").unwrap();
    assert_eq!((part.len(), part.meta(0).unwrap().key), (6, "k004"));
    assert_ne!(whole, part.fingerprint());
    assert_eq!(at("x-000002.tar").unwrap().len(), 2);
    // A glob that finds fewer than dataset.json counts is a missing shard; a range that names one is, too.
    assert!(matches!(at("x-*1.tar"), Err(Error::Incomplete { unit: "shards", expected: 3, found: 1, .. })));
    assert!(at("x-{000002..000003}.tar").unwrap_err().to_string().contains("x-000003.tar"));
    for nothing in ["y-*.tar", "*.zip"] {
        assert!(matches!(at(nothing), Err(Error::Empty { .. })), "{nothing}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(open_error(empty.path()).contains(empty.path().to_str().unwrap()));
    assert!(open_error(&folder.path().join("nowhere")).contains("nowhere"));
}

#[test]
fn batches_hold_what_the_plan_says_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 40);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let order = EpochOrder::new(3, 1, dataset.len());
    let batches: Vec<_> = (0..order.steps(6))
        .map(|step| BatchPlan { epoch: 1, samples: order.rank_samples(step, 6, 0, 1).to_vec() })
        .collect();
    let loader = Loader::new(dataset, spec(PLAIN, 2, 3), batches.clone().into_iter()).unwrap();
    let served: Vec<_> = loader.map(Result::unwrap).collect();
    assert_eq!(served.len(), 6);
    for (batch, plan) in served.iter().zip(&batches) {
        assert_eq!((batch.epoch, &batch.samples, batch.views), (1, &plan.samples, 2));
        let pixels: Vec<u8> =
            plan.samples.iter().flat_map(|&n| vec![n as u8; 2 * (SIZE * SIZE) as usize]).collect();
        assert_eq!(batch.images, pixels);
        assert_eq!(batch.labels, plan.samples.iter().map(|n| i64::from(n % 10)).collect::<Vec<_>>());
    }
}

#[test]
fn threads_and_ranks_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::new(folder.path(), "x", 7).unwrap();
    for sample in 0..24_u32 {
        let pixels: Vec<u8> = (0..20 * 20).map(|i| (i * (sample + 3) % 251) as u8).collect();
        writer.write(&format!("{sample}"), "png", &png(&pixels), 0).unwrap();
    }
    writer.finish().unwrap();
    let dataset = Arc::new(open(folder.path()).unwrap());
    let crop = Crop::RandomResized { scale: (0.2, 1.0), ratio: (0.75, 1.3) };
    let transform = Transform::Train { crop, flip: 0.5 };
    let steps_of_rank = |rank: usize, world: usize, threads: usize, epoch: u64| {
        let order = EpochOrder::new(9, epoch, 24);
        let plan = (0..order.steps(8))
            .map(move |step| BatchPlan { epoch, samples: order.rank_samples(step, 8, rank, world).to_vec() });
        serve(&dataset, spec(transform.clone(), 2, threads), plan)
    };
    // Global batch 0 of every layout, put together from its ranks in order; then batch 1, 2.
    let global = |world: usize, threads: usize, epoch: u64| -> Vec<Vec<u8>> {
        let ranks: Vec<_> = (0..world).map(|rank| steps_of_rank(rank, world, threads, epoch)).collect();
        let local = 8 / world;
        (0..3)
            .flat_map(|step| ranks.iter().flat_map(move |rank| rank[step * local..][..local].to_vec()))
            .collect()
    };
    let expected = global(1, 1, 0);
    assert_eq!(expected.len(), 24);
    for (world, threads) in [(1, 3), (2, 1), (4, 3)] {
        assert_eq!(global(world, threads, 0), expected, "{world} ranks, {threads} threads");
    }
    assert_ne!(global(1, 1, 1), expected, "the epoch has no part in order and crops");
}

#[test]
fn views_share_a_decode_and_differ_by_their_crops() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let view_bytes = (SIZE * SIZE) as usize;
    let views = |transform: Transform| serve(&dataset, spec(transform, 4, 1), plan(&[&[0]])).remove(0);

    let plain = views(PLAIN);
    assert!(plain.chunks(view_bytes).all(|view| view == &plain[..view_bytes]));
    assert_eq!(plain[..3], [0, 1, 2]);

    let cropped = views(Transform::Train { crop: Crop::Pad { pixels: 4 }, flip: 0.0 });
    assert!(
        cropped.chunks(view_bytes).any(|view| view != &cropped[..view_bytes]),
        "all four crops are the same"
    );

    let mirrored = views(Transform::Train { crop: Crop::None, flip: 1.0 });
    for (row, mirror) in plain.chunks(SIZE as usize).zip(mirrored.chunks(SIZE as usize)) {
        assert!(row.iter().eq(mirror.iter().rev()));
    }
    let evaluated = views(Transform::Eval { resize: None });
    assert_eq!(evaluated, plain);
}

#[test]
fn formats_are_told_by_content_and_odd_images_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let cut = flat(9)[..40].to_vec();
    let images =
        [("a.jpg", flat(7)), ("b.png", b"GIF89a".to_vec()), ("c.jpeg", cut), ("d.png", png(&[1; 100]))];
    write_images(folder.path(), &images);
    let dataset = Arc::new(open(folder.path()).unwrap());
    assert_eq!(serve(&dataset, spec(PLAIN, 1, 1), plan(&[&[0]]))[0], [7; 144]);
    for (sample, key, reason) in [
        (1, "'b'", "neither a JPEG nor a PNG"),
        (2, "'c'", "broken PNG"),
        (3, "'d'", "10x10 pixels are too few"),
    ] {
        let mut loader = Loader::new(dataset.clone(), spec(PLAIN, 1, 1), plan(&[&[sample]])).unwrap();
        let message = loader.next().unwrap().unwrap_err().to_string();
        for part in ["x-000000.tar", key, reason] {
            assert!(message.contains(part), "no {part} in: {message}");
        }
    }
}

#[test]
fn an_error_comes_in_its_place_and_ends_the_loader() {
    let folder = tempfile::tempdir().unwrap();
    write_images(folder.path(), &[("ok.png", flat(1)), ("bad.png", vec![0; 10]), ("worse.png", vec![1; 10])]);
    let dataset = Arc::new(open(folder.path()).unwrap());
    for threads in [1, 3] {
        let plan = plan(&[&[0, 0], &[0], &[0, 1, 2], &[2], &[0]]);
        let mut loader = Loader::new(dataset.clone(), spec(PLAIN, 1, threads), plan).unwrap();
        assert_eq!(loader.next().unwrap().unwrap().samples, [0, 0]);
        assert_eq!(loader.next().unwrap().unwrap().samples, [0]);
        assert!(loader.next().unwrap().unwrap_err().to_string().contains("key 'bad'"));
        assert!(loader.next().is_none());
    }
    let mut beyond = Loader::new(dataset, spec(PLAIN, 1, 1), plan(&[&[3]])).unwrap();
    assert!(beyond.next().unwrap().unwrap_err().to_string().contains("sample 3 was asked of a dataset of 3"));
}

#[test]
fn settings_of_zero_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let good = spec(PLAIN, 1, 1);
    for bad in [
        LoaderSpec { views: 0, ..good.clone() },
        LoaderSpec { threads: 0, ..good.clone() },
        LoaderSpec { prefetch: 0, ..good.clone() },
        LoaderSpec { channels: 2, ..good.clone() },
        LoaderSpec { image_size: 0, ..good },
    ] {
        assert!(matches!(Loader::new(dataset.clone(), bad, plan(&[])), Err(Error::InvalidArgument(_))));
    }
}

#[test]
fn recycled_memory_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let endless = (0..200_u64).map(|epoch| BatchPlan { epoch, samples: (0..8).collect() });
    let mut loader = Loader::new(dataset, spec(PLAIN, 2, 2), endless).unwrap();
    let mut addresses = std::collections::BTreeSet::new();
    while let Some(batch) = loader.next() {
        let batch = batch.unwrap();
        assert!(
            batch
                .images
                .chunks(288)
                .enumerate()
                .all(|(n, views)| views.iter().all(|&pixel| pixel == n as u8))
        );
        addresses.insert(batch.images.as_ptr() as usize);
        loader.recycle(batch);
    }
    assert!(addresses.len() <= 5, "{} buffers for 3 batches in flight", addresses.len());
    assert!(loader.wait() > Duration::ZERO);
}

#[test]
fn a_loader_dropped_early_stops() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let start = Instant::now();
    for threads in [1, 4] {
        let endless = (0..).map(|epoch| BatchPlan { epoch, samples: vec![0; 100_000] }); // seconds of work each
        let mut loader = Loader::new(dataset.clone(), spec(PLAIN, 1, threads), endless).unwrap();
        loader.recycle(codinet_dataloader::Batch {
            epoch: 0,
            samples: vec![],
            labels: vec![],
            views: 1,
            images: Default::default(),
        });
        drop(loader);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(Arc::strong_count(&dataset), 1, "a thread outlives its loader");
}

#[test]
fn every_sample_of_an_evaluation_is_served_once() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 11);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let mut seen: Vec<u8> = Vec::new();
    for rank in 0..4 {
        let share: Vec<u32> = eval_samples(11, rank, 4).collect();
        let batches: Vec<_> =
            share.chunks(2).map(|part| BatchPlan { epoch: 0, samples: part.to_vec() }).collect();
        let views = serve(&dataset, spec(Transform::Eval { resize: None }, 1, 2), batches.into_iter());
        seen.extend(views.iter().map(|view| view[0]));
    }
    assert_eq!(seen, (0..11).collect::<Vec<u8>>());
}

#[test]
fn missing_shards_and_samples_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    fs::remove_file(folder.path().join("x-000001.tar")).unwrap();
    let message = open_error(folder.path());
    assert!(message.contains("expected 2 shards, found 1") && message.contains("dataset.json"), "{message}");

    write_images(folder.path(), &[("only.png", flat(0))]); // another x-000000.tar
    fs::copy(folder.path().join("x-000000.tar"), folder.path().join("x-000001.tar")).unwrap();
    assert!(
        open_error(folder.path()).contains("expected 8 samples, found 2"),
        "{}",
        open_error(folder.path())
    );

    fs::write(folder.path().join("dataset.json"), r#"{"version": 2}"#).unwrap();
    assert!(open_error(folder.path()).contains("dataset.json"));
}

#[test]
fn labels_outside_the_classes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    let dataset = open(folder.path()).unwrap();
    dataset.check_labels(8).unwrap();
    let message = dataset.check_labels(6).unwrap_err().to_string();
    for part in ["x-000001.tar", "key 'k006'", "label 6 is outside the 6 classes"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

/// A tar of these members, with GNU headers as other tools write them, and no index.
fn write_tar(folder: &Path, members: &[(&str, &[u8])]) -> PathBuf {
    let path = folder.join("x-000000.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    for (name, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        tar.append_data(&mut header, name, *contents).unwrap();
    }
    tar.finish().unwrap();
    path
}

#[test]
fn shards_of_other_tools_open() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}/n01440764_18.JPEG", "d".repeat(150));
    let long_label = long.replace("JPEG", "cls");
    let image = flat(3);
    let members: [(&str, &[u8]); 6] = [
        ("readme.txt", b"hello"),
        ("a.cls", b" 4\n"),
        ("a.json", b"{}"),
        ("a.png", &image),
        (&long, &image),
        (&long_label, b"5"),
    ];
    write_tar(folder.path(), &members);
    let dataset = open(folder.path()).unwrap();
    let labels: Vec<_> =
        (0..2).map(|sample| dataset.meta(sample).map(|info| (info.key, info.label)).unwrap()).collect();
    assert_eq!(labels, [("a", 4), (long.strip_suffix(".JPEG").unwrap(), 5)]);
    let mut encoded = Vec::new();
    dataset.read(1, &mut encoded).unwrap();
    assert_eq!(encoded, image);
}

#[test]
fn broken_shards_are_named() {
    let image = flat(0);
    let cases: [(&[(&str, &[u8])], &str); 6] = [
        (&[("a.png", &image)], "key 'a': the image has no .cls"),
        (&[("a.cls", b"1"), ("b.png", &image), ("b.cls", b"2")], "key 'a': the .cls member has no .jpg"),
        (&[("a.png", &image), ("a.cls", b"cat")], "key 'a': its .cls member holds \"cat\""),
        (&[("a.png", &image), ("a.cls", b"-1")], "key 'a': its .cls member holds \"-1\""),
        (&[("a.png", &image), ("a.jpg", &image), ("a.cls", b"1")], "key 'a' has more than one image"),
        (&[("readme.txt", b"")], "no samples in the shards"),
    ];
    for (members, reason) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_tar(folder.path(), members);
        let message = open_error(folder.path());
        assert!(message.contains(reason) && !message.contains('\n'), "{message}");
        assert!(message.contains("x-000000.tar") || reason.starts_with("no samples"), "{message}");
    }

    let folder = tempfile::tempdir().unwrap();
    let path = write_tar(folder.path(), &[("a.png", &image), ("a.cls", b"1")]);
    let whole = fs::read(&path).unwrap();
    // Inside a header, inside contents, between two members, without the end marker.
    for (keep, reason) in [
        (100, "not a readable tar"),
        (512 + 20, "inside 'a.png'"),
        (1024, "end marker"),
        (2048, "end marker"),
    ] {
        fs::write(&path, &whole[..keep]).unwrap();
        let message = open_error(folder.path());
        assert!(message.contains("x-000000.tar") && message.contains(reason), "{keep} bytes: {message}");
    }
    fs::write(&path, b"just some text, not an archive".repeat(100)).unwrap();
    assert!(
        open_error(folder.path()).contains("not a readable tar archive"),
        "{}",
        open_error(folder.path())
    );
}

#[test]
fn stale_and_damaged_indices_are_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let (tar, idx) = (folder.path().join("x-000000.tar"), folder.path().join("x-000000.idx"));
    let state = || open(folder.path()).unwrap().shards().next().unwrap().index;
    write_images(folder.path(), &[("a.png", flat(1)), ("b.png", flat(2))]);
    assert_eq!(state(), IndexState::Read);

    fs::remove_file(&idx).unwrap();
    assert_eq!((state(), state()), (IndexState::Rebuilt, IndexState::Read));

    let text = fs::read_to_string(&idx).unwrap();
    for damaged in
        [&text[..text.len() - 20], "", &text.replace("a.png\t", "a.png\t9"), &text.replace("x 1 ", "x 2 ")]
    {
        assert_ne!(damaged, text);
        fs::write(&idx, damaged).unwrap();
        assert_eq!(state(), IndexState::Rebuilt, "{damaged}");
        assert_eq!(fs::read_to_string(&idx).unwrap(), text);
    }

    // The same size, another key: only the time tells. The old index must not be believed.
    let elsewhere = tempfile::tempdir().unwrap();
    write_images(elsewhere.path(), &[("a.png", flat(1)), ("c.png", flat(2))]);
    let size = fs::metadata(&tar).unwrap().len();
    fs::copy(elsewhere.path().join("x-000000.tar"), &tar).unwrap();
    assert_eq!(fs::metadata(&tar).unwrap().len(), size);
    let dataset = open(folder.path()).unwrap();
    assert_eq!(dataset.meta(1).unwrap().key, "c");
    assert_eq!(dataset.shards().next().unwrap().index, IndexState::Rebuilt);
}
