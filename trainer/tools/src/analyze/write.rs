//! Rank 0: writes down what was found.

use super::augment::Augmentation;
use super::charts;
use super::cli::{Args, What};
use super::collect::{ImageOutputs, Subject, VIEWS};
use super::embed::{self, Settings};
use super::files::{Folder, Picture};
use super::measures;
use super::report::Report;
use super::similarity::CELLS;
use super::study::Study;
use crate::plot::CATEGORIES;
use crate::trained::Trained;
use codinet_dataloader::contact_sheet::ContactSheet;
use codinet_trainer::data;
use codinet_trainer::metrics::routing::{Histogram, text};
use codinet_trainer::run::{print_line, projector, write_atomically};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Result};
use std::path::Path;

/// Images in TensorBoard's embedding projector.
const PROJECTED: usize = 10_000;
/// Paths on the contact sheet, and images of each.
const SHEET: (usize, usize) = (8, 12);

/// Rank 0 writes everything that `args` asks for into `out`.
pub fn write(
    args: &Args,
    trained: &Trained,
    subject: &Subject,
    outputs: &ImageOutputs,
    study: &Study,
    out: &Path,
) -> Result<()> {
    let step = trained.file.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let step = step.and_then(run_dir::step_of).unwrap_or(0);
    let folder = Folder::create(out, step, true)?;
    let classes = class_names(trained);
    let mut writer = Writer { args, subject, outputs, study, classes, folder };
    let json = serde_json::to_vec_pretty(study).expect("a study is JSON");
    write_atomically(&out.join("analysis.json"), &json)?;
    writer.tables()?;
    writer.tensorboard()?;
    let name = trained.run.as_ref().and_then(|run| run.file_name()).unwrap_or(trained.file.as_os_str());
    let report = writer.report(&name.to_string_lossy())?;
    let page = out.join("report.html");
    report.save(&page)?;
    print_line(&format!("{}\n  look at it      {}", writer.summary(), page.display()));
    Ok(())
}

fn class_names(trained: &Trained) -> Vec<String> {
    let known = trained.class_names.clone().unwrap_or_default();
    let name = |class: usize| known.get(class).cloned().unwrap_or_else(|| class.to_string());
    (0..trained.config.data.classes as usize).map(name).collect()
}

struct Writer<'a> {
    args: &'a Args,
    subject: &'a Subject<'a>,
    outputs: &'a ImageOutputs,
    study: &'a Study,
    classes: Vec<String>,
    folder: Folder,
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

impl Writer<'_> {
    fn histogram(&self) -> Histogram {
        Histogram::new(&self.outputs.paths, self.outputs.gates, self.outputs.labels.len())
    }

    /// The lines on the terminal.
    fn summary(&self) -> String {
        self.numbers().iter().map(|row| format!("  {:<44}{}\n", row[0], row[1])).collect::<String>()
    }

    /// What was found, and what the paper has of CIFAR-10: CoDiNet's and the vanilla network's, both ResNet-110.
    fn numbers(&self) -> Vec<Vec<String>> {
        let study = self.study;
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let mut rows = Vec::new();
        let mut row = |what: &str, here: String, codinet: &str, vanilla: &str, place: &str| {
            rows.push(vec![what.into(), here, codinet.into(), vanilla.into(), place.into()]);
        };
        let of_static = percent(study.gmacs / study.gmacs_static);
        row("top-1", percent(study.top1), "94.47 %", "93.66 %", "Table 3");
        row("distinct paths", study.distinct_paths.to_string(), "276", "113", "Table 3");
        row("images", study.images.to_string(), "10000", "10000", "");
        row("MACs, of the static network's", of_static, "57 %", "59 %", "Table 5");
        row("MACs per image, 10⁹", format!("{:.4}", study.gmacs), "", "", "");
        row("entropy of the paths, bits", format!("{:.3}", study.path_entropy), "", "", "");
        let blocks = study.blocks.len();
        row(
            &format!("expected blocks run, of {blocks}"),
            format!("{:.2}", study.expected_blocks),
            "",
            "",
            "",
        );
        if !study.consistency.is_empty() {
            let kept = study.consistency.iter().map(|part| part.same_path).sum::<f64>();
            let kept = percent(kept / study.consistency.len() as f64);
            row("same path when augmented, mean of four ways", kept, "53.42 %", "22.65 %", "4.4.1");
            for part in &study.consistency {
                row(&format!("  {}", part.augmentation), percent(part.same_path), "", "", "");
            }
        }
        if let Some(all) = study.same_path_under_all {
            row("same path under all four", percent(all), "", "", "");
        }
        if let (Some(spread), Some(apart)) = (study.spread, study.centre_distance) {
            let config = self.subject.config;
            let of = |on: bool, name: &str, margin: f64| {
                if on { format!(" ({name} {margin})") } else { String::new() }
            };
            let consistency = &config.consistency;
            let diversity = &config.diversity;
            let near = of(consistency.weight > 0.0, "m_c", consistency.margin);
            let far = of(diversity.weight > 0.0, "m_d", diversity.margin);
            row(&format!("mean ‖r − r̄‖ of augmentations{near}"), format!("{spread:.3}"), "", "", "");
            row(&format!("mean distance of images' centres{far}"), format!("{apart:.3}"), "", "", "");
        }
        if let Some(similarity) = &study.similarity {
            let pcc = |found: Option<f64>| found.map_or("undefined".into(), |pcc| format!("{pcc:.3}"));
            row("PCC of likeness, relaxed paths", pcc(similarity.relaxed.pcc), "0.581", "0.024", "Table 9");
            row("PCC of likeness, hard paths", pcc(similarity.hard.pcc), "", "", "");
        }
        rows
    }

    fn tables(&self) -> Result<()> {
        let outputs = self.outputs;
        let study = self.study;
        let folder = &self.folder;
        let images = outputs.labels.len() as f64;
        let histogram = self.histogram();
        let path = |(rank, (path, count)): (usize, &(&[u8], u64))| {
            let ran: u8 = path.iter().sum();
            let share = *count as f64 / images;
            vec![(rank + 1).to_string(), text(path), count.to_string(), share.to_string(), ran.to_string()]
        };
        let columns = strings(&["rank", "path", "images", "share", "blocks_run"]);
        folder.table("paths", &columns, histogram.by_frequency().iter().enumerate().map(path))?;

        let by_class =
            measures::rates_by_class(&outputs.paths, outputs.gates, &outputs.labels, self.classes.len());
        let columns: Vec<String> = ["class".to_owned()].into_iter().chain(study.blocks.clone()).collect();
        let row = |name: &str, rates: &[f64]| -> Vec<String> {
            let rates = rates.iter().map(|rate| if rate.is_nan() { String::new() } else { rate.to_string() });
            [name.to_owned()].into_iter().chain(rates).collect()
        };
        let rows = self.classes.iter().zip(&by_class).map(|(name, rates)| row(name, rates));
        folder.table("rates", &columns, rows.chain([row("all", &study.rates)]))?;

        let mut columns =
            strings(&["number", "shard", "key", "class", "prediction", "path", "expected_blocks"]);
        for kind in Augmentation::ALL.iter().take(outputs.augmented.len()) {
            let name = kind.name().replace(' ', "_");
            columns.extend(
                ["prediction", "path", "path_kl", "prediction_kl"].map(|what| format!("{name}_{what}")),
            );
        }
        let expected = measures::expected_blocks(&outputs.relaxed, outputs.gates);
        let bits = |paths: &[u8], at: usize| text(&paths[at * outputs.gates..(at + 1) * outputs.gates]);
        let image = |at: usize| {
            let place = self.subject.data.sample_info(outputs.samples[at] as usize);
            let (shard, key) = place.map_or_else(Default::default, |place| {
                (place.shard.display().to_string(), place.key.to_owned())
            });
            let mut row = vec![outputs.samples[at].to_string(), shard, key];
            row.extend([outputs.labels[at].to_string(), outputs.predictions[at].to_string()]);
            row.extend([bits(&outputs.paths, at), expected[at].to_string()]);
            for part in &outputs.augmented {
                row.extend([part.predictions[at].to_string(), bits(&part.paths, at)]);
                row.extend([part.path_kl[at].to_string(), part.prediction_kl[at].to_string()]);
            }
            row
        };
        folder.table("images", &columns, (0..outputs.labels.len()).map(image))?;

        if !study.consistency.is_empty() {
            let columns =
                ["augmentation", "same_path", "same_prediction", "top1", "path_kl", "prediction_kl"];
            let columns = [&strings(&columns)[..], &strings(&["frequency_kl", "distinct_paths"])].concat();
            let row = |part: &measures::Consistency| {
                let numbers = [part.same_path, part.same_prediction, part.top1, part.path_kl];
                let numbers = numbers.into_iter().chain([part.prediction_kl, part.frequency_kl]);
                let numbers = numbers.map(|number| number.to_string());
                let name = [part.augmentation.to_owned()].into_iter();
                name.chain(numbers).chain([part.distinct_paths.to_string()]).collect()
            };
            folder.table("consistency", &columns, study.consistency.iter().map(row))?;
        }
        if let Some(similarity) = &study.similarity {
            let columns = strings(&["feature_similarity_from", "path_similarity_from", "pairs"]);
            let from = |cell: usize| (cell as f64 / (CELLS as f64 / 2.0) - 1.0).to_string();
            let cells = similarity.relaxed.cells.iter().enumerate().filter(|(_, pairs)| **pairs > 0.0);
            let side = CELLS as usize;
            let rows = cells.map(|(i, pairs)| vec![from(i % side), from(i / side), pairs.to_string()]);
            folder.table("similarity", &columns, rows)?;
        }
        Ok(())
    }

    fn tensorboard(&mut self) -> Result<()> {
        let outputs = self.outputs;
        let study = self.study;
        let mut scalars = vec![
            ("paths/distinct".to_owned(), study.distinct_paths as f64),
            ("paths/entropy_bits".to_owned(), study.path_entropy),
            ("paths/top1".to_owned(), study.top1),
            ("paths/gmacs".to_owned(), study.gmacs),
        ];
        let pcc = study.similarity.as_ref().and_then(|similarity| similarity.relaxed.pcc);
        scalars.extend(pcc.map(|pcc| ("paths/pcc".to_owned(), pcc)));
        let kept = study
            .consistency
            .iter()
            .map(|part| (format!("paths_kept/{}", part.augmentation), part.same_path));
        scalars.extend(kept);
        self.folder.scalars(&scalars);
        let mut vectors = Vec::new();
        let mut labels = Vec::new();
        let stride = outputs.labels.len().div_ceil(PROJECTED).max(1);
        for at in (0..outputs.labels.len()).step_by(stride) {
            let own = at * outputs.gates..(at + 1) * outputs.gates;
            vectors.extend(&outputs.relaxed[own.clone()]);
            let path = &outputs.paths[own];
            let name = |class: i64| self.classes[class as usize].clone();
            let ran: u8 = path.iter().sum();
            labels.push(vec![
                name(outputs.labels[at]),
                name(outputs.predictions[at]),
                text(path),
                ran.to_string(),
            ]);
        }
        let columns = ["class", "prediction", "path", "blocks run"];
        projector::write(
            &self.folder.path.join(run_dir::TENSORBOARD),
            "paths",
            &vectors,
            outputs.gates,
            &columns,
            &labels,
        )
    }

    fn report(&mut self, name: &str) -> Result<Report> {
        let args = self.args;
        let study = self.study;
        let about = format!(
            "{} images of {}, {} left out; weights {}; codinet-analyze {}.",
            study.images, study.data, study.bad_images, study.checkpoint, study.version
        );
        let mut report = Report::new(&format!("Routing paths of {name}"), &about);
        report.section(
            "In numbers",
            "The paper's figures are of ResNet-110 on CIFAR-10: another network on other images, here for orientation.",
        );
        let columns = ["", "here", "paper, CoDiNet", "paper, vanilla", "where"];
        report.table(&strings(&columns), &self.numbers());
        if args.wants(What::Paths) {
            self.path_pictures(&mut report)?;
        }
        if !study.consistency.is_empty() {
            self.consistency_pictures(&mut report)?;
        }
        if let Some(similarity) = &study.similarity {
            report.section(
                "Likeness of images and of paths",
                "Cosine similarities of all pairs of images: of their features and of their relaxed paths (Figure 12). The \
                 nearer to the dotted line, the more alike the two are.",
            );
            let caption = format!(
                "Pairs of {} images by likeness; features: {}. Dotted: equal likeness.",
                similarity.images, similarity.features
            );
            let chart = charts::correlation(&similarity.relaxed)?;
            report.figure(&self.folder.chart("similarity", chart, caption)?);
        }
        if args.wants(What::Tsne) {
            self.tsne(&mut report)?;
        }
        if args.wants(What::Sheets) {
            report.section(
                "Images that share a path",
                "A row is a path, one of the most frequent; 1 is a block that runs.",
            );
            report.figure(&self.sheet()?);
        }
        Ok(report)
    }

    fn path_pictures(&mut self, report: &mut Report) -> Result<()> {
        let outputs = self.outputs;
        let study = self.study;
        report.section(
            "Paths",
            "Which blocks run, by hard decisions (Eq. 13). Few paths, or blocks that always run or never do, are signs that \
             routing has collapsed.",
        );
        let histogram = self.histogram();
        let chart = charts::frequencies(&histogram)?;
        report.figure(&self.folder.chart("frequencies", chart, "How many images take each path.")?);
        let chart = charts::frequent(&histogram, &study.blocks)?;
        let caption =
            "The most frequent paths; filled: the block runs. To the right: share of images, blocks run.";
        report.figure(&self.folder.chart("frequent", chart, caption)?);
        let by_class =
            measures::rates_by_class(&outputs.paths, outputs.gates, &outputs.labels, self.classes.len());
        let chart = charts::rates(&by_class, &study.rates, &self.classes, &study.blocks)?;
        let caption = "How often each block runs, by class; numbers are per cent.";
        report.figure(&self.folder.chart("rates", chart, caption)?);
        Ok(())
    }

    fn consistency_pictures(&mut self, report: &mut Report) -> Result<()> {
        let study = self.study;
        let text = format!(
            "Each image next to one augmentation of it, in four ways: cropped at random as in training, mirrored, turned upside \
             down, rotated by up to {} degrees (the paper's Section 4.4.1 does not say by how much). The divergence of paths \
             takes blocks as independent coins of probability v; that of frequencies compares how often the whole set takes \
             each path.",
            self.args.rotation
        );
        report.section("Under augmentation", &text);
        let columns = ["augmentation", "same path", "same class predicted", "top-1", "KL of paths, nats"];
        let columns =
            [&strings(&columns)[..], &strings(&["KL of predictions", "KL of frequencies", "paths"])].concat();
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let row = |part: &measures::Consistency| {
            let mut row =
                vec![part.augmentation.to_owned(), percent(part.same_path), percent(part.same_prediction)];
            row.push(percent(part.top1));
            row.extend([part.path_kl, part.prediction_kl, part.frequency_kl].map(|kl| format!("{kl:.4}")));
            row.push(part.distinct_paths.to_string());
            row
        };
        report.table(&columns, &study.consistency.iter().map(row).collect::<Vec<_>>());
        let chart = charts::unchanged(&study.consistency)?;
        let caption =
            "Share of images whose path, and whose predicted class, an augmentation leaves as it was.";
        report.figure(&self.folder.chart("unchanged", chart, caption)?);
        let chart = charts::divergences(&study.consistency)?;
        let caption = "Mean KL divergence between an image and its augmentation (Figure 9).";
        report.figure(&self.folder.chart("divergences", chart, caption)?);
        Ok(())
    }

    /// Relaxed paths in the plane, images and groups of augmentations together.
    fn tsne(&mut self, report: &mut Report) -> Result<()> {
        let args = self.args;
        let outputs = self.outputs;
        let stride = outputs.labels.len().div_ceil(args.tsne_images.max(1)).max(1);
        let shown: Vec<usize> = (0..outputs.labels.len()).step_by(stride).collect();
        let own = |at: &usize| &outputs.relaxed[at * outputs.gates..(at + 1) * outputs.gates];
        let mut points: Vec<f32> = shown.iter().flat_map(own).copied().collect();
        points.extend(&outputs.groups);
        let settings = Settings { perplexity: args.perplexity, epochs: args.tsne_steps, seed: args.seed };
        let places = embed::tsne(&points, outputs.gates, settings);
        let images = &places[..shown.len()];
        let all = &places;
        report.section(
            "The routing space",
            &format!(
                "t-SNE of {} relaxed paths and of {} augmentations each of {} images, perplexity {}, {} steps. Axes have no \
                 unit, and distances between far clusters no meaning.",
                shown.len(),
                VIEWS,
                outputs.groups.len() / outputs.gates / VIEWS,
                args.perplexity,
                args.tsne_steps
            ),
        );
        let mut coloured = args.classes.clone();
        if coloured.is_empty() {
            coloured = (0..self.classes.len().min(CATEGORIES.len())).collect();
        }
        coloured.truncate(CATEGORIES.len());
        let of = |at: &usize| coloured.iter().position(|class| *class as i64 == outputs.labels[*at]);
        let names: Vec<String> = coloured.iter().map(|&class| self.classes[class].clone()).collect();
        let categories: Vec<Option<usize>> = shown.iter().map(of).collect();
        let chart = charts::by_category("Paths by class", images, &categories, &names)?;
        report.figure(&self.folder.chart(
            "tsne_class",
            chart,
            "Each image's path, by its class (Figures 6, 7).",
        )?);
        let expected = measures::expected_blocks(&outputs.relaxed, outputs.gates);
        let expected: Vec<f64> = shown.iter().map(|&at| expected[at]).collect();
        let chart =
            charts::by_value("Paths by blocks run", images, &expected, "expected number of blocks run")?;
        let caption = "Each image's path, by the expected number of blocks that it runs, Σ v (Figure 11).";
        report.figure(&self.folder.chart("tsne_blocks", chart, caption)?);
        let groups = outputs.groups.len() / outputs.gates / VIEWS;
        if groups > 0 {
            let chart = charts::by_group("Paths of augmentations", all, groups, VIEWS)?;
            let caption = "Ten augmentations each of some images, joined to their centre; grey: all images (Figure 10).";
            report.figure(&self.folder.chart("tsne_groups", chart, caption)?);
        }
        let columns = strings(&["image", "group", "x", "y"]);
        let row = |(i, at): (usize, &[f64; 2])| {
            let (image, group) = match i.checked_sub(shown.len()) {
                None => (outputs.samples[shown[i]].to_string(), String::new()),
                Some(view) => (String::new(), (view / VIEWS).to_string()),
            };
            vec![image, group, at[0].to_string(), at[1].to_string()]
        };
        self.folder.table("tsne", &columns, places.iter().enumerate().map(row))
    }

    /// Images that share a path, for the most frequent paths.
    fn sheet(&mut self) -> Result<Picture> {
        let outputs = self.outputs;
        let subject = self.subject;
        let (paths, each) = SHEET;
        let histogram = self.histogram();
        let row = |(path, count): &(&[u8], u64)| {
            let takers = outputs
                .paths
                .chunks(outputs.gates)
                .zip(&outputs.samples)
                .filter(|(theirs, _)| theirs == path);
            let takers: Vec<u32> = takers.map(|(_, &sample)| sample).collect();
            let stride = takers.len().div_ceil(each).max(1);
            (format!("{}  {count} images", text(path)), takers.into_iter().step_by(stride).collect())
        };
        let rows: Vec<(String, Vec<u32>)> = histogram.by_frequency().iter().take(paths).map(row).collect();
        let spec = data::loader_spec(subject.config, subject.config.evaluation(), 1);
        let draw = || {
            let sheet = ContactSheet::draw_rows(subject.data, &spec, &rows)?;
            Ok((sheet.png()?, (sheet.width, sheet.height)))
        };
        let (png, size) = draw().map_err(|error: codinet_dataloader::Error| Error::from(error))?;
        self.folder.png("same_path", png, size, 0.8, "Images that share a path, evenly spaced in the set.")
    }
}
