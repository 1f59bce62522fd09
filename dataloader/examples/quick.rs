//! throwaway
use codinet_dataloader::*;
use codinet_dataloader::encode::*;
use std::sync::Arc;
use std::time::Instant;
fn bench(path: &str, spec: LoaderSpec, batch: usize, epochs: u64) {
    let ds = Arc::new(Dataset::open(path).unwrap());
    let n = ds.len();
    let plan = (0..epochs).flat_map(move |epoch| { let o = EpochOrder::new(1, epoch, n); (0..o.steps(batch)).map(move |s| BatchPlan { epoch, samples: o.rank_samples(s, batch, 0, 1).to_vec() }) });
    let t = Instant::now();
    let threads = spec.threads;
    let mut l = Loader::new(ds, spec, plan).unwrap();
    let mut count = 0;
    while let Some(b) = l.next() { let b = b.unwrap(); count += b.samples.len(); l.recycle(b); }
    println!("{path} threads {threads}: {:.0} samples/s, waited {:?} of {:?}", count as f64 / t.elapsed().as_secs_f64(), l.wait(), t.elapsed());
}
fn main() {
    let spec = |threads, size, channels, transform| LoaderSpec { transform, image_size: size, channels, views: 2, seed: 1, threads, prefetch: 4 };
    let pad = Transform::Train { crop: Crop::Pad { pixels: 4 }, flip: 0.5 };
    for round in 0..2 { println!("round {round}");
    for threads in [1, 2] { for p in ["/tmp/fm/train", "/tmp/fmpng/train"] { bench(p, spec(threads, 28, 1, pad.clone()), 256, 4); } } }
    // worst jpeg error
    let (a, b) = (Dataset::open("/tmp/fm/train").unwrap(), Dataset::open("/tmp/fmpng/train").unwrap());
    let mut d = Decoder::new().unwrap(); let (mut e, mut p, mut q) = (vec![], vec![], vec![]);
    let (mut worst, mut sum) = (0u8, 0u64);
    for i in 0..60000 { a.read(i, &mut e).unwrap(); let h = d.header(&e).unwrap(); d.decode(&e, &h, Channels::Grey, &mut p).unwrap();
        b.read(i, &mut e).unwrap(); let h = d.header(&e).unwrap(); d.decode(&e, &h, Channels::Grey, &mut q).unwrap();
        for (x, y) in p.iter().zip(&q) { worst = worst.max(x.abs_diff(*y)); sum += x.abs_diff(*y) as u64; } }
    println!("worst {worst} mean {}", sum as f64 / (60000.0 * 784.0));
    // photographs of sorts
    let dir = std::path::Path::new("/tmp/photo"); let _ = std::fs::remove_dir_all(dir);
    let mut w = ShardWriter::new(dir, "p", 100).unwrap(); let mut enc = Encoder::new(Encoding::Jpeg { quality: 75 }).unwrap();
    for k in 0..100u32 { let px: Vec<u8> = (0..500*375u32).flat_map(|i| { let n = (i.wrapping_mul(2654435761).wrapping_add(k*977) >> 28) as u32; let v = (i % 500) / 4 + (i / 500) / 4 + n; [v as u8, (v/2+n) as u8, (255 - v) as u8] }).collect();
        let j = enc.encode(&px, 500, 375, Channels::Rgb).unwrap(); if k == 0 { println!("jpeg {} bytes", j.len()); }
        w.write(&format!("{k}"), "jpg", &j, 0).unwrap(); }
    w.finish().unwrap();
    let rrc = Transform::Train { crop: Crop::RandomResized { scale: (0.08, 1.0), ratio: (0.75, 4.0/3.0) }, flip: 0.5 };
    for threads in [1, 2] { bench("/tmp/photo", spec(threads, 224, 3, rrc.clone()), 50, 20); }
    for threads in [1, 2] { bench("/tmp/photo", spec(threads, 224, 3, Transform::Eval { resize: Some(256) }), 50, 20); }
    // big index
    let dir = std::path::Path::new("/tmp/big"); let _ = std::fs::remove_dir_all(dir);
    let mut w = ShardWriter::new(dir, "train", 10_000).unwrap();
    let t = Instant::now();
    for k in 0..1_280_000u32 { w.write(&format!("n{:08}_{k}", k / 1280), "JPEG", b"x", k / 1280).unwrap(); }
    w.finish().unwrap(); println!("wrote 1.28M in {:?}", t.elapsed());
    let t = Instant::now(); let ds = Dataset::open("/tmp/big").unwrap(); println!("open {:?} for {}", t.elapsed(), ds.len());
    let t = Instant::now(); let f = ds.fingerprint(); println!("fingerprint {:?} {f}", t.elapsed());
    let t = Instant::now(); ds.check_labels(1000).unwrap(); println!("check_labels {:?}", t.elapsed());
    let t = Instant::now(); EpochOrder::new(1, 1, ds.len()); println!("order {:?}", t.elapsed());
    let rss = std::fs::read_to_string("/proc/self/status").unwrap(); println!("{}", rss.lines().find(|l| l.starts_with("VmRSS")).unwrap());
    for e in std::fs::read_dir("/tmp/big").unwrap() { let p = e.unwrap().path(); if p.extension().unwrap() == "idx" { std::fs::remove_file(p).unwrap(); } }
    let t = Instant::now(); Dataset::open("/tmp/big").unwrap(); println!("rebuild {:?}", t.elapsed());
}
