//! The loader through its public interface: what is in a batch, in which order, and what happens on bad images.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use codinet_dataloader::transform::{ColorJitter, Erase, Policy};
use codinet_dataloader::{
    Augment, Batch, BatchPlan, Crop, DEFAULT_MAX_PIXELS, Dataset, DrawGroup, EpochOrder, Error, Loader,
    LoaderSpec, Normalization, OnBadSample, ShardWriter, Transform, eval_samples,
};

use crate::data::{SIZE, flat, open, png, write_flat, write_images};

const PLAIN: Transform = Transform::Train { crop: Crop::None, flip: 0.0, augment: Augment::NONE };

fn spec(transform: Transform, views: usize, threads: usize) -> LoaderSpec {
    LoaderSpec {
        transform,
        image_size: SIZE,
        channels: 1,
        views,
        normalization: None,
        max_pixels: DEFAULT_MAX_PIXELS,
        seed: 5,
        threads,
        prefetch: 3,
        on_bad: OnBadSample::Fail,
    }
}

fn plan(batches: &[&[u32]]) -> std::vec::IntoIter<BatchPlan> {
    let batches: Vec<_> = batches.iter().map(|&samples| BatchPlan::new(0, samples.to_vec())).collect();
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

/// Views of a size are those of a loader of that size; buffers are reused for smaller and larger ones.
#[test]
fn batches_have_the_size_of_their_plan() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let crop = Crop::RandomResized { scale: (0.3, 1.0), ratio: (0.75, 1.25) };
    let transform = Transform::Train { crop, flip: 0.5, augment: Augment::NONE };
    let spec =
        |image_size, normalization| LoaderSpec { image_size, normalization, ..spec(transform.clone(), 2, 2) };
    let sizes = [4, 8, 6, 8, 4];
    let floats = Normalization { mean: [0.4; 3], std: [0.3; 3] };
    for normalization in [None, Some(floats)] {
        let plans = sizes.map(|size| BatchPlan::new(3, vec![0, 0, 0]).with_image_size(size));
        let mut loader = Loader::new(dataset.clone(), spec(8, normalization), plans.into_iter()).unwrap();
        for size in sizes {
            let batch = loader.next().unwrap().unwrap();
            let alone = spec(size, normalization);
            let mut alone =
                Loader::new(dataset.clone(), alone, std::iter::once(BatchPlan::new(3, vec![0, 0, 0])))
                    .unwrap();
            let expected = alone.next().unwrap().unwrap();
            assert_eq!((batch.image_size, &batch.images), (size, &expected.images));
            loader.recycle(batch);
        }
    }
}

#[test]
fn batches_follow_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 40);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let order = EpochOrder::new(3, 1, dataset.len());
    let batches: Vec<_> = (0..order.steps(6))
        .map(|step| BatchPlan::new(1, order.rank_samples(step, 6, 0, 1).to_vec()))
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

/// A sample that an epoch draws again gets the views that follow those of its first draw.
#[test]
fn each_draw_of_a_sample_has_views_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let cut = Transform::Train { crop: Crop::Pad { pixels: 6 }, flip: 0.5, augment: Augment::NONE };
    let group = DrawGroup { samples: vec![0], draws: 3 };
    let order = Arc::new(EpochOrder::draw(&[group], 5, 0));
    let plans: Vec<BatchPlan> = (0..3).map(|step| order.rank_plan(0, step, 1, 0, 1)).collect();
    let repeats: Vec<u32> = plans.iter().map(|plan| plan.repeats[0]).collect();
    let drawn = serve(&dataset, spec(cut.clone(), 2, 2), plans.into_iter());
    let six = serve(&dataset, spec(cut, 6, 2), plan(&[&[0]]));
    let views: Vec<&[u8]> = six[0].chunks(2 * (SIZE * SIZE) as usize).collect();
    assert!(views[0] != views[1] && views[1] != views[2]);
    for (draw, repeat) in drawn.iter().zip(repeats) {
        assert_eq!(draw, views[repeat as usize], "draw {repeat}");
    }
}

#[test]
fn joined_sets_are_one_set_of_the_same_classes() {
    let folder = tempfile::tempdir().unwrap();
    let set = |name: &str, count: u32, class_names: Option<Vec<&str>>| {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        write_flat(&folder, count);
        let mut info = open(&folder).unwrap().info().unwrap().clone();
        info.classes = class_names.as_ref().map_or(10, Vec::len);
        info.class_names = class_names.map(|names| names.into_iter().map(str::to_owned).collect());
        info.save(&folder).unwrap();
        folder
    };
    let names = || Some("a b c d e f g h i j".split(' ').collect::<Vec<_>>());
    let first = set("first", 9, names());
    let second = set("second", 6, None);
    let open_all =
        |folders: &[&Path]| Dataset::join(folders.iter().map(|folder| open(folder).unwrap()).collect());
    let joined = Arc::new(open_all(&[&second, &first]).unwrap());
    assert_eq!((joined.len(), joined.set_sizes()), (15, &[6, 9][..]));
    let info = joined.info().unwrap();
    assert_eq!((info.samples, info.shards, info.class_names.as_ref().unwrap().len()), (15, 5, 10));
    let samples = serve(&joined, spec(PLAIN, 1, 2), plan(&[&[0, 5, 6, 14]]));
    assert_eq!(samples.iter().map(|pixels| pixels[0]).collect::<Vec<_>>(), [0, 5, 0, 8]);
    assert_eq!(joined.sample_name(14), format!("{}/x-000002.tar:k008", first.display()));
    assert_eq!(open_all(&[&first]).unwrap().fingerprint(), open(&first).unwrap().fingerprint());
    for (other, part) in [
        (set("renamed", 4, Some("a x c d e f g h i j".split(' ').collect())), "class 1 is 'x', and 'b' in"),
        (set("fewer", 4, Some("a b c d".split(' ').collect())), "class 4 is missing, and 'e' in"),
    ] {
        let message = open_all(&[&first, &other]).unwrap_err().to_string();
        let places =
            [other.join("x-000000.tar"), first.join("x-000000.tar")].map(|path| path.display().to_string());
        assert!(message.contains(part) && places.iter().all(|place| message.contains(place)), "{message}");
    }
}

/// Floats equal the bytes of the same views, normalised: with flips that take no pass of their own, and with operations.
#[test]
fn float_batch_is_the_normalised_batch_of_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let normalization = Normalization { mean: [0.25, 0.5, 0.5], std: [0.125, 1.0, 1.0] };
    let jitter = ColorJitter { brightness: 0.4, ..ColorJitter::default() };
    for augment in [Augment::NONE, Augment { color_jitter: Some(jitter), ..Augment::NONE }] {
        let crop = Crop::RandomResized { scale: (0.2, 1.0), ratio: (0.75, 1.3) };
        let spec = spec(Transform::Train { crop, flip: 0.5, augment }, 20, 1);
        let batch = |spec| {
            let plan = plan(&[&[0]]);
            Loader::new(dataset.clone(), spec, plan).unwrap().next().unwrap().unwrap().images
        };
        let bytes = batch(spec.clone());
        let floats = batch(LoaderSpec { normalization: Some(normalization), ..spec });
        let expected = bytes.iter().map(|&value| f32::from(value) / 31.875 - 2.0);
        assert_eq!((bytes.len(), floats.len()), (20 * (SIZE * SIZE) as usize, 80 * (SIZE * SIZE) as usize));
        let floats = floats.as_chunks().0.iter().map(|&value| f32::from_ne_bytes(value));
        assert!(floats.zip(expected).all(|(float, expected)| (float - expected).abs() < 1e-6));
    }
}

#[test]
fn batches_do_not_depend_on_threads_or_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::new(folder.path(), "x", 7).unwrap();
    for sample in 0..24_u32 {
        let pixels: Vec<u8> = (0..20 * 20).map(|i| (i * (sample + 3) % 251) as u8).collect();
        writer.write(&format!("{sample}"), "png", &png(&pixels), 0).unwrap();
    }
    writer.finish().unwrap();
    let dataset = Arc::new(open(folder.path()).unwrap());
    let crop = Crop::RandomResized { scale: (0.2, 1.0), ratio: (0.75, 1.3) };
    let augment = Augment {
        vertical_flip: 0.5,
        color_jitter: Some(ColorJitter { brightness: 0.4, contrast: 0.4, ..ColorJitter::default() }),
        policy: Some(Policy::TrivialAugmentWide { num_magnitude_bins: 31 }),
        erase: Some(Erase { probability: 0.5, scale: (0.1, 0.3), ratio: (0.5, 2.0), value: [0.5; 3] }),
    };
    let transform = Transform::Train { crop, flip: 0.5, augment };
    let steps_of_rank = |rank: usize, world: usize, threads: usize, epoch: u64, from: usize| {
        let order = EpochOrder::new(9, epoch, 24);
        let plan = (from..order.steps(8))
            .map(move |step| BatchPlan::new(epoch, order.rank_samples(step, 8, rank, world).to_vec()));
        serve(&dataset, spec(transform.clone(), 2, threads), plan)
    };
    // The global batches from `from` on, each put together from its ranks in order.
    let global = |world: usize, threads: usize, epoch: u64, from: usize| -> Vec<Vec<u8>> {
        let ranks: Vec<_> = (0..world).map(|rank| steps_of_rank(rank, world, threads, epoch, from)).collect();
        let local = 8 / world;
        (0..3 - from)
            .flat_map(|step| ranks.iter().flat_map(move |rank| rank[step * local..][..local].to_vec()))
            .collect()
    };
    let expected = global(1, 1, 0, 0);
    assert_eq!(expected.len(), 24);
    for (world, threads) in [(1, 1), (1, 3), (2, 1), (2, 3), (4, 1), (4, 3)] {
        // From the start, and resumed by this layout after one step and after two.
        for from in 0..3 {
            assert_eq!(
                global(world, threads, 0, from),
                expected[8 * from..],
                "{world} ranks, {threads} threads"
            );
        }
    }
    assert_ne!(global(1, 1, 1, 0), expected, "the epoch has no part in order and crops");
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

    let cropped =
        views(Transform::Train { crop: Crop::Pad { pixels: 4 }, flip: 0.0, augment: Augment::NONE });
    assert!(
        cropped.chunks(view_bytes).any(|view| view != &cropped[..view_bytes]),
        "all four crops are the same"
    );

    let mirrored = views(Transform::Train { crop: Crop::None, flip: 1.0, augment: Augment::NONE });
    for (row, mirror) in plain.chunks(SIZE as usize).zip(mirrored.chunks(SIZE as usize)) {
        assert!(row.iter().eq(mirror.iter().rev()));
    }
    let augment = Augment { vertical_flip: 1.0, ..Augment::NONE };
    let flipped = views(Transform::Train { crop: Crop::None, flip: 0.0, augment });
    for (view, flipped) in plain.chunks(view_bytes).zip(flipped.chunks(view_bytes)) {
        assert!(view.chunks(SIZE as usize).eq(flipped.chunks(SIZE as usize).rev()));
    }
    let evaluated = views(Transform::Eval { resize: None });
    assert_eq!(evaluated, plain);
}

#[test]
fn crops_depend_on_seed_epoch_and_sample() {
    let folder = tempfile::tempdir().unwrap();
    let image = png(&(0..SIZE * SIZE).map(|i| i as u8).collect::<Vec<_>>());
    write_images(folder.path(), &[("twin1.png", image.clone()), ("twin2.png", image)]);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let views = |seed: u64, epoch: u64, sample: u32| {
        let transform = Transform::Train { crop: Crop::Pad { pixels: 6 }, flip: 0.5, augment: Augment::NONE };
        let plan = std::iter::once(BatchPlan::new(epoch, vec![sample]));
        serve(&dataset, LoaderSpec { seed, ..spec(transform, 3, 1) }, plan)
    };
    let first = views(1, 1, 0);
    assert_eq!(views(1, 1, 0), first);
    for (seed, epoch, sample) in [(2, 1, 0), (1, 2, 0), (1, 1, 1)] {
        assert_ne!(views(seed, epoch, sample), first, "seed {seed}, epoch {epoch}, sample {sample}");
    }
}

#[test]
fn format_is_detected_by_content_and_bad_images_are_named() {
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
fn error_comes_in_order_and_ends_the_loader() {
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
        assert_eq!(Arc::strong_count(&dataset), 1, "threads go on after an error");
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
fn recycled_buffers_are_reused() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let endless = (0..200_u64).map(|epoch| BatchPlan::new(epoch, (0..8).collect()));
    let mut loader = Loader::new(dataset, spec(PLAIN, 2, 2), endless).unwrap();
    let mut decoys = Vec::new();
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
        decoys.push(vec![0_u8; 8 * 288]); // so that memory given back to the allocator doesn't return
    }
    assert!(addresses.len() <= 5, "{} buffers for 3 batches in flight", addresses.len());
    assert!(loader.stall_time() > Duration::ZERO);
}

#[test]
fn dropped_loader_stops_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = textured(folder.path());
    let start = Instant::now();
    for threads in [1, 4] {
        let endless = (0..).map(|epoch| BatchPlan::new(epoch, vec![0; 100_000])); // seconds of work each
        let mut loader = Loader::new(dataset.clone(), spec(PLAIN, 1, threads), endless).unwrap();
        loader.recycle(Batch {
            epoch: 0,
            samples: vec![],
            labels: vec![],
            bad: vec![],
            views: 1,
            image_size: SIZE,
            images: Default::default(),
        });
        drop(loader);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(Arc::strong_count(&dataset), 1, "a thread outlives its loader");
}

#[test]
fn evaluation_reads_each_sample_once() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 11);
    let dataset = Arc::new(open(folder.path()).unwrap());
    let mut seen: Vec<u8> = Vec::new();
    for rank in 0..4 {
        let share: Vec<u32> = eval_samples(11, rank, 4).collect();
        let batches: Vec<_> = share.chunks(2).map(|part| BatchPlan::new(0, part.to_vec())).collect();
        let views = serve(&dataset, spec(Transform::Eval { resize: None }, 1, 2), batches.into_iter());
        seen.extend(views.iter().map(|view| view[0]));
    }
    assert_eq!(seen, (0..11).collect::<Vec<u8>>());
}
