//! What data sets really hold, and what disks do to them: each kind of bad data, by what is served and said.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::jpeg::tile;
use codinet_dataloader::{
    Batch, BatchPlan, Channels, DEFAULT_MAX_PIXELS, Dataset, EpochOrder, Error, Loader, LoaderSpec,
    OnBadSample, ShardWriter, Transform,
};

const SIZE: u32 = 32;

fn spec(on_bad: OnBadSample) -> LoaderSpec {
    let transform = Transform::Eval { resize: Some(SIZE) };
    LoaderSpec {
        transform,
        image_size: SIZE,
        channels: 3,
        views: 2,
        normalization: None,
        max_pixels: DEFAULT_MAX_PIXELS,
        seed: 1,
        threads: 3,
        prefetch: 2,
        on_bad,
    }
}

/// A JPEG with detail, told from others by its brightness.
fn jpeg(number: u32) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..64 * 48 * 3_u32).map(|i| (20 * number + (i.wrapping_mul(2_654_435_761) >> 27)) as u8).collect();
    Encoder::new(Encoding::Jpeg { quality: 90 }).unwrap().encode(&pixels, 64, 48, Channels::Rgb).unwrap()
}

/// One shard of these images; labels are their places.
fn dataset(folder: &Path, images: &[Vec<u8>]) -> Arc<Dataset> {
    let mut writer = ShardWriter::new(folder, "x", 100).unwrap();
    for (label, image) in images.iter().enumerate() {
        writer.write(&format!("k{label}"), "JPEG", image, label as u32).unwrap();
    }
    writer.finish().unwrap();
    Arc::new(Dataset::open(folder.to_str().unwrap()).unwrap())
}

fn serve(dataset: &Arc<Dataset>, on_bad: OnBadSample, plans: Vec<BatchPlan>) -> Result<Vec<Batch>, Error> {
    Loader::new(dataset.clone(), spec(on_bad), plans.into_iter()).unwrap().collect()
}

/// Images as they are found in ImageNet: all are served.
#[test]
fn odd_images_are_decoded() {
    let png = {
        let mut encoder = Encoder::new(Encoding::Png).unwrap();
        encoder.encode(&[77; 40 * 36 * 3], 40, 36, Channels::Rgb).unwrap()
    };
    let golden = |name: &str| fs::read(format!("../../tests/golden/jpeg/{name}.jpg")).unwrap();
    let images = [
        png, // named .JPEG
        golden("cmyk"),
        golden("grey"),
        golden("oriented"),
        golden("progressive"),
        [jpeg(1), b"trailing bytes".to_vec()].concat(),
        [tile::transcode(&jpeg(1)).unwrap(), b"trailing bytes".to_vec()].concat(),
        jpeg(1),
    ];
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path(), &images);
    let batches = serve(&dataset, OnBadSample::Fail, vec![BatchPlan::new(0, (0..8).collect())]).unwrap();
    assert_eq!((&batches[0].labels[..], batches[0].bad.len()), (&[0, 1, 2, 3, 4, 5, 6, 7][..], 0));
    let views: Vec<&[u8]> = batches[0].images.chunks(2 * (SIZE * SIZE * 3) as usize).collect();
    assert!(views[0].iter().all(|&value| value == 77));
    assert!(views[5] == views[7] && views[6] == views[7]);
}

/// Images that can't be decoded, each with a part of its message.
fn broken() -> Vec<(Vec<u8>, &'static str)> {
    let whole = jpeg(9);
    let tiled = tile::transcode(&whole).unwrap();
    let cut = |bytes: &[u8], keep: usize| bytes[..keep].to_vec();
    let mut giant = whole.clone();
    let frame = giant.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    giant[frame + 5..frame + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    vec![
        (cut(&whole, whole.len() / 2), "broken JPEG"),
        (cut(&whole, whole.len() - 2), "broken JPEG"),
        (cut(&tiled, tiled.len() * 2 / 3), "broken JPEG"),
        (cut(&whole, 10), "broken JPEG"),
        (vec![], "an empty file"),
        (vec![0; 500], "neither a JPEG nor a PNG"),
        (b"<!DOCTYPE html>".to_vec(), "neither a JPEG nor a PNG"),
        (giant, "65500x65500 pixels"),
        (b"\x89PNG\r\n\x1a\n and no more".to_vec(), "broken PNG"),
    ]
}

#[test]
fn bad_images_are_replaced_by_the_slots_next_samples() {
    let bad = broken();
    let images: Vec<Vec<u8>> = bad.iter().map(|(image, _)| image.clone()).chain((0..8).map(jpeg)).collect();
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path(), &images);
    let order = Arc::new(EpochOrder::new(4, 2, images.len()));
    let is_bad = |sample: u32| (sample as usize) < bad.len();
    // Global batches of 8, by one rank and by two.
    let of_rank = |rank: usize, world: usize| {
        let plans = (0..2).map(|step| order.rank_plan(2, step, 8, rank, world));
        serve(&dataset, OnBadSample::Replace, plans.collect()).unwrap()
    };
    let whole = of_rank(0, 1);
    for (step, batch) in whole.iter().enumerate() {
        assert_eq!((batch.samples.len(), batch.images.len()), (8, 8 * 2 * (SIZE * SIZE * 3) as usize));
        for (slot, &sample) in batch.samples.iter().enumerate() {
            let mut places =
                (0..).map(|attempt| order.samples()[(8 * step + slot + 8 * attempt) % images.len()]);
            assert_eq!(Some(sample), places.find(|&sample| !is_bad(sample)));
            assert_eq!(batch.labels[slot], i64::from(sample));
        }
    }
    let met: std::collections::BTreeMap<u32, &str> =
        whole.iter().flat_map(|batch| &batch.bad).map(|bad| (bad.sample, bad.reason.as_str())).collect();
    assert!(met.len() == bad.len(), "each was met: {met:?}");
    for (sample, reason) in met {
        assert!(reason.contains(bad[sample as usize].1), "{sample}: {reason}");
    }
    for (step, batch) in whole.iter().enumerate() {
        let halves = [of_rank(0, 2), of_rank(1, 2)];
        let joined: Vec<u8> = halves.iter().flat_map(|half| half[step].images.to_vec()).collect();
        assert!(batch.images == joined[..], "two ranks serve what one does");
    }
}

#[test]
fn evaluation_leaves_out_and_reports_bad_images() {
    let images = [vec![jpeg(0), vec![], jpeg(2), jpeg(3)], vec![vec![1], vec![2]]].concat();
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path(), &images);
    let plans = vec![BatchPlan::new(0, vec![0, 1, 2, 3]), BatchPlan::new(0, vec![4, 5])];
    let batches = serve(&dataset, OnBadSample::Replace, plans.clone()).unwrap();
    let good = serve(&dataset, OnBadSample::Fail, vec![BatchPlan::new(0, vec![0, 2, 3])]).unwrap();
    assert_eq!((&batches[0].samples[..], &batches[0].labels[..]), (&[0, 2, 3][..], &[0, 2, 3][..]));
    assert!(batches[0].images == good[0].images);
    assert!(batches[1].samples.is_empty() && batches[1].images.is_empty());
    let told: Vec<_> =
        batches.iter().flat_map(|batch| &batch.bad).map(|bad| (bad.sample, &bad.key[..])).collect();
    assert_eq!(told, [(1, "k1"), (4, "k4"), (5, "k5")]);
    let error = serve(&dataset, OnBadSample::Fail, plans).unwrap_err().to_string();
    assert!(error.contains("x-000000.tar, key 'k1': an empty file"), "{error}");
}

/// A shard that shrinks while it is open, or whose bytes change: an error each, no SIGBUS and no made-up picture.
#[test]
fn truncated_open_shard_is_bad_data() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path(), &(0..6).map(jpeg).collect::<Vec<_>>());
    let shard = folder.path().join("x-000000.tar");
    let file = OpenOptions::new().write(true).open(&shard).unwrap();
    file.write_all_at(&[0; 300], 512).unwrap(); // the first image's head
    file.set_len(fs::metadata(&shard).unwrap().len() / 2).unwrap();
    let batches = serve(&dataset, OnBadSample::Replace, vec![BatchPlan::new(0, (0..6).collect())]).unwrap();
    assert_eq!(batches[0].samples, [1, 2]);
    let reason = |sample: u32| &batches[0].bad.iter().find(|bad| bad.sample == sample).unwrap().reason;
    assert!(reason(0).contains("neither a JPEG nor a PNG"), "{}", reason(0));
    assert!((3..6).all(|sample| reason(sample).contains("cannot read")), "{}", reason(5));
}

#[test]
fn only_bad_samples_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset(folder.path(), &vec![b"nothing".to_vec(); 5]);
    let order = Arc::new(EpochOrder::new(0, 0, 5));
    let plan = order.rank_plan(0, 0, 4, 0, 1);
    let error = serve(&dataset, OnBadSample::Replace, vec![plan]).unwrap_err().to_string();
    assert!(error.contains("64 samples one after another can't be used"), "{error}");
}
