//! `report.html`: the numbers of an analysis next to the paper's, and its charts.

use super::charts;
use super::cli::What;
use super::collect::{Subject, VIEWS};
use super::embed::{self, TsneOptions};
use super::files::{Figure, OutputFolder};
use super::html::Page;
use super::measures::{self, Consistency};
use super::results::{ClassResults, Results};
use super::study::Similarity;
use crate::plot::CATEGORIES;
use codinet_dataloader::contact_sheet::ContactSheet;
use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{BatchPlan, Channels, Loader};
use codinet_trainer::config::Arch;
use codinet_trainer::data;
use codinet_trainer::metrics::classes::{MATRIX_ROWS, Prediction};
use codinet_trainer::metrics::routing::text;
use codinet_trainer::sys::error::Result;

/// The most classes in the page's table.
const CLASSES: usize = 50;
/// Paths on the contact sheet, and images of each.
const SHEET: (usize, usize) = (8, 12);

/// The lines for the terminal.
pub fn summary(results: &Results) -> String {
    numbers(results).iter().map(|[name, here, ..]| format!("  {name:<44}{here}\n")).collect()
}

/// The page; its figures are also files of `folder`.
pub fn build(results: &Results, folder: &mut OutputFolder, name: &str) -> Result<Page> {
    let args = results.args;
    let study = results.study;
    let text = format!(
        "{} images of {}, {} left out; weights {}; codinet-analyze {}.",
        study.images, study.data, study.bad_images, study.checkpoint, study.version
    );
    let mut page = Page::new(&format!("Analysis of {name}"), &text);
    page.section("Numbers", &paper_note(results));
    let columns = ["", "here", "paper, CoDiNet", "paper, vanilla", "where", "meaning"];
    page.table(&columns, &numbers(results).into_iter().map(Vec::from).collect::<Vec<_>>());
    if args.includes(What::Accuracy) {
        add_accuracy(&mut page, results, folder)?;
    }
    if results.observations.gates == 0 {
        return Ok(page);
    }
    if args.includes(What::Paths) {
        add_paths(&mut page, results, folder)?;
    }
    if !study.consistency.is_empty() {
        add_consistency(&mut page, results, folder)?;
    }
    if let Some(similarity) = &study.similarity {
        add_similarity(&mut page, similarity, folder)?;
    }
    if args.includes(What::Tsne) {
        add_tsne(&mut page, results, folder)?;
    }
    if args.includes(What::Sheets) {
        page.section(
            "Images that share a path",
            "One row per path, for the most frequent paths; 1 is a block that runs.",
        );
        page.figures(&[contact_sheet(results, folder)?]);
    }
    Ok(page)
}

/// How this network and its images compare with those of the paper's numbers.
fn paper_note(results: &Results) -> String {
    let Subject { config, data, .. } = results.subject;
    let path = &config.data.val;
    let same_network = config.model.arch == Arch::ResNet110 && config.gated();
    // A data set that was imported from folders has a folder's name.
    let names = [Some(path), data.info().map(|info| &info.name)];
    let is_cifar10 = |name: &String| name.to_lowercase().replace(['-', '_'], "").contains("cifar10");
    let same_data = config.data.classes == 10 && names.into_iter().flatten().any(is_cifar10);
    let relation = match (same_network, same_data) {
        (true, true) => "the same network and data set",
        (true, false) => "the same network on another data set, so they are for orientation only",
        (false, true) => "another network on the same data set, so they are for orientation only",
        (false, false) => "another network on another data set, so they are for orientation only",
    };
    let gated = if config.gated() { "gated" } else { "static" };
    format!(
        "The paper's numbers are for gated ResNet-110 on CIFAR-10. Here is a {gated} {} on {path}: {relation}.",
        config.model.arch
    )
}

/// The measures here and in the paper, CoDiNet's and the vanilla network's, for ResNet-110 on CIFAR-10, with their meanings.
fn numbers(results: &Results) -> Vec<[String; 6]> {
    let study = results.study;
    let mut rows = Vec::new();
    let mut add = |name: &str, here: String, paper: [&str; 3], meaning: &str| {
        let [codinet, vanilla, place] = paper.map(str::to_owned);
        rows.push([name.to_owned(), here, codinet, vanilla, place, meaning.to_owned()]);
    };
    let none = ["", "", ""];
    let top1 = ["94.47 %", "93.66 %", "Table\u{a0}3"];
    add("top-1", percent(study.top1), top1, "Share of images whose most probable class is the right one.");
    add("images", study.images.to_string(), ["10000", "10000", ""], "Validation images that could be read.");
    let share = percent(study.gmacs / study.gmacs_static);
    let meaning =
        "Cost of an image, as a share of what it costs when every block runs and there are no routers.";
    add("MACs, of the static network's", share, ["57 %", "59 %", "Table\u{a0}5"], meaning);
    let meaning = "Mean number of multiply-accumulates, with routers and skip branches.";
    add("MACs per image, 10⁹", format!("{:.4}", study.gmacs), none, meaning);
    if !study.blocks.is_empty() {
        let meaning = "How many different sets of blocks the images run.";
        add("distinct paths", study.distinct_paths.to_string(), ["276", "113", "Table\u{a0}3"], meaning);
        let meaning = "How evenly images are spread over paths: 0 if all take one path, 1 for two equally frequent paths.";
        add("entropy of the paths, bits", format!("{:.3}", study.path_entropy), none, meaning);
        let of = format!(", of {}", study.blocks.len());
        let run: f64 = study.rates.iter().fold(0.0, |sum, rate| sum + rate);
        let meaning = "Mean number of gated blocks that an image runs, by hard decisions.";
        add(&format!("blocks run{of}"), format!("{run:.2}"), none, meaning);
        let meaning = "The same if each gate decided at random by its probability v: the mean of Σ v. Far from the row above, gates \
                       are undecided.";
        add(&format!("expected blocks run{of}"), format!("{:.2}", study.expected_blocks), none, meaning);
    }
    if !study.consistency.is_empty() {
        let sum: f64 = study.consistency.iter().map(|part| part.same_path).sum();
        let mean = percent(sum / study.consistency.len() as f64);
        let meaning = "Share of images that run the same blocks after an augmentation.";
        add("same path when augmented, mean of four ways", mean, ["53.42 %", "22.65 %", "4.4.1"], meaning);
        for part in &study.consistency {
            add(&format!("  {}", part.augmentation), percent(part.same_path), none, "");
        }
    }
    if let Some(share) = study.same_path_under_all {
        let meaning = "Share of images that run the same blocks after each of the four augmentations.";
        add("same path under all four", percent(share), none, meaning);
    }
    if let (Some(spread), Some(centre_distance)) = (study.spread, study.centre_distance) {
        let config = results.subject.config;
        let margin = |on: bool, name: &str, margin: f64| {
            if on { format!(" ({name} {margin})") } else { String::new() }
        };
        let m_c = margin(config.consistency.weight > 0.0, "m_c", config.consistency.margin);
        let m_d = margin(config.diversity.weight > 0.0, "m_d", config.diversity.margin);
        let meaning = "Distance of an augmented image's relaxed path from the centre of its image's; L_con penalises it above m_c.";
        add(&format!("mean ‖r − r̄‖ of augmentations{m_c}"), format!("{spread:.3}"), none, meaning);
        let meaning = "Distance between two images' centres of relaxed paths; L_div penalises it below m_d.";
        add(
            &format!("mean distance of images' centres{m_d}"),
            format!("{centre_distance:.3}"),
            none,
            meaning,
        );
    }
    if let Some(similarity) = &study.similarity {
        let pcc = |pcc: Option<f64>| pcc.map_or("undefined".into(), |pcc| format!("{pcc:.3}"));
        let relaxed = pcc(similarity.relaxed.pcc);
        let meaning = "Pearson's correlation: near 1 if images that look alike have paths that are alike; v is compared.";
        add("PCC of similarity, relaxed paths", relaxed, ["0.581", "0.024", "Table\u{a0}9"], meaning);
        let meaning = "The same for the blocks that run.";
        add("PCC of similarity, hard paths", pcc(similarity.hard.pcc), none, meaning);
    }
    rows
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The confusion matrix, the classes, and the images that are most confidently wrong.
fn add_accuracy(page: &mut Page, results: &Results, folder: &mut OutputFolder) -> Result<()> {
    let Results { confusion, classes, mistakes, observations, subject, .. } = results;
    page.section(
        "Accuracy by class",
        "Which classes are taken for which, with hard decisions (Eq. 13). confusion.csv and classes.csv have all numbers.",
    );
    let shares = confusion.shares(MATRIX_ROWS);
    let one = match shares.group {
        1 => "a class".to_owned(),
        group => format!("{group} neighbouring classes"),
    };
    let caption = format!(
        "Each row is {one}, each column {one} as predicted, in the same order: the share of the row's images in per cent. Mistakes lie off \
         the diagonal."
    );
    let figure = folder.chart("confusion", charts::confusion(&shares, classes)?, caption)?;
    let gates = observations.gates;
    let pairs = confusion.confused_pairs(usize::MAX);
    let row = |class: &ClassResults| {
        let pair = pairs.iter().find(|(of, ..)| *of == class.class);
        let taken_for = pair
            .map_or_else(String::new, |(_, predicted, images)| format!("{}, {images}", classes[*predicted]));
        let accuracy = class.accuracy.map_or_else(String::new, percent);
        let mut row = vec![classes[class.class].clone(), class.images.to_string(), accuracy, taken_for];
        if gates > 0 {
            row.extend([format!("{:.2}", class.blocks_run), format!("{:.4}", class.gmacs)]);
        }
        row
    };
    let mut rows = results.by_class();
    rows.retain(|class| class.images > 0);
    rows.sort_by(|a, b| a.accuracy.partial_cmp(&b.accuracy).expect("numbers"));
    rows.truncate(CLASSES);
    let columns = ["class", "images", "accuracy", "taken for, images", "blocks run", "MACs, 10⁹"];
    let columns = &columns[..if gates > 0 { 6 } else { 4 }];
    page.figure_and_table(&figure, columns, &rows.iter().map(row).collect::<Vec<_>>());
    if mistakes.is_empty() {
        return Ok(());
    }
    let text = format!(
        "The {} images with the highest probability of a wrong class, as evaluation sees them; mistakes.csv has their names. Look for \
         wrong labels, images of two classes, and crops that miss the object.",
        mistakes.len()
    );
    page.section("Confidently wrong", &text);
    let caption = |image: &Prediction| {
        let Prediction { sample, label, predicted, probability, blocks_run } = *image;
        let key = subject.data.sample_info(sample as usize).map_or("", |info| info.key);
        let blocks = if gates > 0 { format!(", {blocks_run} of {gates} blocks") } else { String::new() };
        let percent = percent(probability.into());
        format!("{}, predicted: {}\n{percent}{blocks}\n{key}", classes[label], classes[predicted])
    };
    let samples = mistakes.iter().map(|image| image.sample).collect();
    let mut gallery = Vec::new();
    for (image, png) in mistakes.iter().zip(encode_images(subject, samples)?) {
        gallery.push(Figure { caption: caption(image), png, width: subject.config.data.eval_size() });
    }
    page.gallery(&gallery);
    Ok(())
}

/// The images of `samples`, as evaluation sees them, as PNG files.
fn encode_images(subject: &Subject, samples: Vec<u32>) -> Result<Vec<Vec<u8>>> {
    let spec =
        data::loader_spec(subject.config, subject.config.evaluation(), subject.config.data.eval_size(), 1);
    let side = spec.image_size;
    let channels = Channels::new(spec.channels)?;
    let mut encoder = Encoder::new(Encoding::Png)?;
    let mut files = Vec::new();
    for batch in Loader::new(subject.data.clone(), spec, std::iter::once(BatchPlan::new(0, samples)))? {
        for pixels in batch?.images.chunks_exact((side * side) as usize * channels.count()) {
            files.push(encoder.encode(pixels, side, side, channels)?);
        }
    }
    Ok(files)
}

fn add_paths(page: &mut Page, results: &Results, folder: &mut OutputFolder) -> Result<()> {
    let study = results.study;
    let histogram = results.histogram();
    page.section(
        "Paths",
        "Which blocks run, by hard decisions (Eq. 13). Few paths, or blocks that always or never run, are signs that routing has \
         collapsed.",
    );
    let caption = "How many images take each path.";
    let frequencies = folder.chart("frequencies", charts::frequencies(&histogram)?, caption)?;
    let caption =
        "The most frequent paths; filled: the block runs. On the right: share of images, blocks run.";
    let frequent = folder.chart("frequent", charts::frequent(&histogram, &study.blocks)?, caption)?;
    let chart = charts::rates(&results.rates_by_class(), &study.rates, &results.classes, &study.blocks)?;
    let caption = "How often each block runs, by class, in per cent.";
    let rates = folder.chart("rates", chart, caption)?;
    page.figures(&[frequencies, frequent, rates]);
    Ok(())
}

fn add_consistency(page: &mut Page, results: &Results, folder: &mut OutputFolder) -> Result<()> {
    let parts = &results.study.consistency;
    let text = format!(
        "Each image against one augmentation of it, in four ways: random crop as in training, horizontal flip, vertical flip, \
         rotation by up to {} degrees (the paper's Section 4.4.1 does not give the angle). The divergence of paths takes blocks as \
         independent, with probability v; that of frequencies compares how often the whole set takes each path.",
        results.args.rotation
    );
    page.section("Under augmentation", &text);
    let columns = [
        "augmentation",
        "same path",
        "same class predicted",
        "top-1",
        "KL of paths, nats",
        "KL of predictions",
        "KL of frequencies",
        "paths",
    ];
    let kl = |kl: f64| format!("{kl:.4}");
    let row = |part: &Consistency| {
        vec![
            part.augmentation.to_owned(),
            percent(part.same_path),
            percent(part.same_prediction),
            percent(part.top1),
            kl(part.path_kl),
            kl(part.prediction_kl),
            kl(part.frequency_kl),
            part.distinct_paths.to_string(),
        ]
    };
    page.table(&columns, &parts.iter().map(row).collect::<Vec<_>>());
    let caption = "The share of images that keep their path, and their predicted class, under augmentation.";
    let unchanged = folder.chart("unchanged", charts::unchanged(parts)?, caption)?;
    let caption = "Mean KL divergence between an image and its augmentation (Figure 9).";
    let divergences = folder.chart("divergences", charts::divergences(parts)?, caption)?;
    page.figures(&[unchanged, divergences]);
    Ok(())
}

fn add_similarity(page: &mut Page, similarity: &Similarity, folder: &mut OutputFolder) -> Result<()> {
    page.section(
        "Similarity of images and of paths",
        "Cosine similarities of all pairs of images: of their features and of their relaxed paths (Figure 12). The two are equal on \
         the dashed line.",
    );
    let caption = format!(
        "Pairs of {} images by similarity; features: {}. Dashed: equal similarity.",
        similarity.images, similarity.features
    );
    page.figures(&[folder.chart("similarity", charts::correlation(&similarity.relaxed)?, caption)?]);
    Ok(())
}

/// Relaxed paths in the plane, of images and of groups of augmentations.
fn add_tsne(page: &mut Page, results: &Results, folder: &mut OutputFolder) -> Result<()> {
    let args = results.args;
    let observations = results.observations;
    let gates = observations.gates;
    let images = observations.labels.len();
    let groups = observations.groups.len() / gates / VIEWS;
    let shown: Vec<usize> = (0..images).step_by(images.div_ceil(args.tsne_images.max(1)).max(1)).collect();
    let mut points = Vec::new();
    for i in &shown {
        points.extend(&observations.relaxed[i * gates..(i + 1) * gates]);
    }
    points.extend(&observations.groups);
    let options = TsneOptions { perplexity: args.perplexity, epochs: args.tsne_steps, seed: args.seed };
    let places = embed::tsne(&points, gates, options);
    let image_places = &places[..shown.len()];
    let text = format!(
        "t-SNE of {} relaxed paths and of {VIEWS} augmentations each of {groups} images, perplexity {}, {} steps. Axes have no \
         unit, and distances between far clusters no meaning.",
        shown.len(),
        args.perplexity,
        args.tsne_steps
    );
    page.section("The routing space", &text);

    let mut coloured = args.classes.clone();
    if coloured.is_empty() {
        coloured = (0..results.classes.len()).collect();
    }
    coloured.truncate(CATEGORIES.len());
    let category = |i: &usize| coloured.iter().position(|class| *class as i64 == observations.labels[*i]);
    let categories: Vec<Option<usize>> = shown.iter().map(category).collect();
    let names: Vec<String> = coloured.iter().map(|&class| results.classes[class].clone()).collect();
    let chart = charts::by_category("Paths by class", image_places, &categories, &names)?;
    let caption = "Each image's path, by its class (Figures 6, 7).";
    let mut figures = vec![folder.chart("tsne_class", chart, caption)?];

    let expected = measures::expected_blocks(&observations.relaxed, gates, images);
    let expected: Vec<f64> = shown.iter().map(|&i| expected[i]).collect();
    let label = "expected number of blocks run";
    let chart = charts::by_value("Paths by blocks run", image_places, &expected, label)?;
    let caption = "Each image's path, by the expected number of blocks that it runs, Σ v (Figure 11).";
    figures.push(folder.chart("tsne_blocks", chart, caption)?);

    if groups > 0 {
        let chart = charts::by_group("Paths of augmentations", &places, groups, VIEWS)?;
        let caption =
            "Ten augmentations each of some images, joined to their centre; grey: all images (Figure 10).";
        figures.push(folder.chart("tsne_groups", chart, caption)?);
    }
    page.figures(&figures);
    let row = |(i, [x, y]): (usize, &[f64; 2])| {
        let (image, group) = match i.checked_sub(shown.len()) {
            None => (observations.samples[shown[i]].to_string(), String::new()),
            Some(view) => (String::new(), (view / VIEWS).to_string()),
        };
        vec![image, group, x.to_string(), y.to_string()]
    };
    let columns = ["image", "group", "x", "y"].map(str::to_owned);
    folder.table("tsne", &columns, places.iter().enumerate().map(row))
}

/// Images that share a path, for the most frequent paths.
fn contact_sheet(results: &Results, folder: &mut OutputFolder) -> Result<Figure> {
    let subject = results.subject;
    let observations = results.observations;
    let (paths, images) = SHEET;
    let histogram = results.histogram();
    let row = |(path, count): &(&[u8], u64)| {
        let all = observations.paths.chunks(observations.gates).zip(&observations.samples);
        let samples: Vec<u32> = all.filter(|(other, _)| other == path).map(|(_, &sample)| sample).collect();
        let stride = samples.len().div_ceil(images).max(1);
        (format!("{}  {count} images", text(path)), samples.into_iter().step_by(stride).collect())
    };
    let rows: Vec<(String, Vec<u32>)> = histogram.by_frequency().iter().take(paths).map(row).collect();
    let spec =
        data::loader_spec(subject.config, subject.config.evaluation(), subject.config.data.eval_size(), 1);
    let sheet = ContactSheet::draw_rows(subject.data, &spec, &rows)?;
    let size = (sheet.width, sheet.height);
    folder.png("same_path", sheet.png()?, size, 0.8, "Images that share a path, evenly spaced in the set.")
}
