//! Parquet files of images.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

/// Images and labels.
type Rows = Vec<(Option<Vec<u8>>, i64)>;

/// As the `datasets` library writes it.
fn write(path: &Path, groups: &[Rows]) {
    let schema = "message schema {
        optional group image { optional binary bytes; optional binary path (STRING); }
        optional int64 label;
    }";
    let names = r#"{"info": {"features": {"label": {"names": ["tench", "goldfish", "shark"]}}}}"#;
    let metadata = vec![KeyValue::new("huggingface".to_owned(), names.to_owned())];
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(Some(metadata))
        .build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let images: Vec<ByteArray> = rows.iter().filter_map(|row| row.0.clone().map(Into::into)).collect();
        let levels: Vec<i16> = rows.iter().map(|row| if row.0.is_some() { 2 } else { 1 }).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), None).unwrap();
        column.close().unwrap();
        let names = vec![ByteArray::from("x.JPEG"); rows.len()];
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&names, Some(&vec![2; rows.len()]), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().map(|row| row.1).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn rows(first: usize, count: usize) -> Rows {
    (first..first + count).map(|number| (Some(photograph(number)), number as i64 % 3)).collect()
}

#[test]
fn parquet_becomes_shards() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    write(&source.path().join("train-00000-of-00002.parquet"), &[rows(0, 10), vec![], rows(10, 7)]);
    write(&source.path().join("train-00001-of-00002.parquet"), &[rows(17, 13)]);
    let out = outs.path().join("train");
    let settings = ["--shard-size", "8", "--no-tile"];
    let text = stdout(&import("parquet", source.path(), &out, &settings));
    assert!(text.contains("train (samples: 30, shards: 4)"), "{text}");
    let mut found = samples(&out);
    let order: Vec<String> = found.iter().map(|sample| sample.0.clone()).collect();
    found.sort();
    assert_ne!(order, found.iter().map(|sample| sample.0.clone()).collect::<Vec<_>>(), "not shuffled");
    for (number, (key, label, image)) in found.into_iter().enumerate() {
        let (file, row) = if number < 17 { (0, number) } else { (1, number - 17) };
        assert_eq!(key, format!("train-{file:05}-of-00002/{row:06}"));
        assert_eq!((label as usize, image), (number % 3, photograph(number)));
    }
    let info = Dataset::open(out.to_str().unwrap()).unwrap().info().unwrap().clone();
    assert_eq!(info.class_names.unwrap(), ["tench", "goldfish", "shark"]);

    // Without a shard and the last word, as after a kill: the same bytes again.
    let before = files(&out);
    fs::remove_file(out.join("train-000002.tar")).unwrap();
    fs::remove_file(out.join("dataset.json")).unwrap();
    let glob = source.path().join("train-*.parquet");
    stdout(&import("parquet", &glob, &out, &[&settings[..], &["--threads", "3"]].concat()));
    assert!(files(&out) == before);
}

/// Row groups of one file are read by several threads at a time.
#[test]
fn parallel_reads_of_a_file_are_correct() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    // Each image is a sound JPEG with noise behind its end, which decoders ignore and which can't be compressed.
    let sound = photograph(0);
    let image = |number: usize| {
        let mut state = number as u64 + 1;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        [sound.clone(), (0..200_000).map(|_| noise()).collect()].concat()
    };
    let groups: Vec<Rows> =
        (0..8).map(|group| (0..40).map(|row| (Some(image(group * 40 + row)), 1)).collect()).collect();
    write(&source.path().join("train.parquet"), &groups);
    let out = outs.path().join("train");
    stdout(&import("parquet", source.path(), &out, &["--shard-size", "8", "--no-tile", "--threads", "4"]));
    let mut found = samples(&out);
    found.sort();
    assert_eq!(found.len(), 320);
    for (number, (key, _, found)) in found.into_iter().enumerate() {
        assert!(found == image(number), "{key}");
    }
}

#[test]
fn parquet_that_cannot_be_trained_on_is_refused() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    let out = outs.path().join("train");
    let refused = |reason: &str| {
        let error = data_error(&import("parquet", source.path(), &out, &[]));
        assert!(error.contains(reason), "no {reason} in: {error}");
    };
    refused("no .parquet files here");
    let train = source.path().join("train-00000-of-00001.parquet");
    write(&train, &[vec![(Some(photograph(0)), -1)]]);
    refused("row 0 has label -1: no class");
    write(&train, &[vec![(Some(photograph(0)), 3)]]);
    refused("label 3 is outside the 3 classes");
    write(&train, &[]);
    refused("no rows in it");
    write(&train, &[vec![(Some(photograph(0)), 0), (None, 1)]]);
    refused("key 'train-00000-of-00001/000001': an empty file");
    let whole = fs::read(&train).unwrap();
    fs::write(&train, &whole[..whole.len() - 9]).unwrap();
    refused("not a readable Parquet file");
    fs::write(source.path().join("test-00000-of-00001.parquet"), &whole).unwrap();
    refused("files of the splits {\"test\", \"train\"}");
}
