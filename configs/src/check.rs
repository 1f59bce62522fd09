//! What values a config takes.

use crate::{Config, Hidden, Schedule, Stage};
use codinet_dataloader::transform::{Augment, Transform};

/// What each key takes, in the order of checking, for the manual; a key may come more than once, and one whose type says it
/// all does not come.
pub fn takes() -> Vec<(String, String)> {
    let config = Config { stages: vec![Stage::default()], ..Config::default() };
    let said = config.checks().into_iter();
    said.map(|(_, key, wanted)| (key.replace("stages.0.", "stages.N."), wanted)).collect()
}

impl Config {
    /// Every value that is refused: its key, and what is wrong with it.
    pub(crate) fn refused(&self) -> Vec<(String, String)> {
        let out_of_range = self.checks().into_iter().filter(|(fine, ..)| !fine);
        let own = out_of_range.map(|(_, key, wanted)| (key, format!("is out of range; it takes {wanted}")));
        own.chain(self.refused_by_loader()).collect()
    }

    /// What the loader would say of the settings that are its own.
    fn refused_by_loader(&self) -> Vec<(String, String)> {
        let data = &self.data;
        let crop = Transform::Train { crop: data.crop.clone(), flip: 0.0, augment: Augment::default() };
        let checks = [
            ("data.crop", crop.check(data.image_size)),
            ("data.augment", data.augment.check()),
            ("data.mix", data.mix.check()),
            ("data.eval_resize", self.evaluation().check(data.image_size)),
        ];
        let refused = checks.into_iter().filter_map(|(key, checked)| Some((key, checked.err()?)));
        refused.map(|(key, error)| (key.to_owned(), format!("is refused: {error}"))).collect()
    }

    /// Whether each value is fine, its key, and what it takes.
    fn checks(&self) -> Vec<(bool, String, String)> {
        let mut checks = self.own_checks();
        for (i, stage) in self.stages.iter().enumerate() {
            let schedule = match &stage.schedule {
                Schedule::MultiStep { milestones, factor } => {
                    milestones.is_sorted() && *factor > 0.0 && factor.is_finite()
                }
                Schedule::OneCycle { rise } => *rise > 0.0 && *rise < 1.0,
                Schedule::Constant | Schedule::Cosine => true,
            };
            let epochs = stage.epochs as f64;
            let weight = |weight: Option<f64>| weight.is_none_or(f64::is_finite);
            checks.extend(
                [
                    ((1..=1_000_000).contains(&stage.epochs), "epochs", "1 to 1000000"),
                    (stage.lr > 0.0 && stage.lr.is_finite(), "lr", "above 0"),
                    ((0.0..=epochs).contains(&stage.warmup_epochs), "warmup_epochs", "0 to epochs"),
                    (
                        schedule,
                        "schedule",
                        "milestones in rising order and a factor above 0; a rise in 0 to 1",
                    ),
                    (weight(stage.alpha), "alpha", "finite, or null"),
                    (weight(stage.beta), "beta", "finite, or null"),
                    (weight(stage.gamma), "gamma", "finite, or null"),
                ]
                .map(|(fine, key, wanted)| (fine, format!("stages.{i}.{key}"), wanted.to_owned())),
            );
        }
        checks
    }

    /// Whether each value outside the stages is fine, its key, and what it takes.
    fn own_checks(&self) -> Vec<(bool, String, String)> {
        let (data, model, optim, cost) = (&self.data, &self.model, &self.optim, &self.cost);
        let channels = |n: usize| n == 1 || n == data.channels as usize;
        let count = |n: Option<usize>| n.is_none_or(|n| (1..=1024).contains(&n));
        let batch = |n: usize| (1..=1 << 20).contains(&n);
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let hidden = match model.router.hidden {
            Hidden::Ratio(ratio) => ratio > 0.0 && ratio <= 16.0,
            Hidden::Units(units) => (1..=65_536).contains(&units),
        };
        let any = "finite, at least 0";
        let shards = "a folder, glob or brace pattern of .tar shards";
        let few = "1 to 1024, or null";
        let list = "a list of one number, or one a channel";
        [
            (self.run.log_every > 0, "run.log_every", "at least 1"),
            (self.run.evaluate_every > 0, "run.evaluate_every", "at least 1"),
            (self.run.keep_last >= 2, "run.keep_last", "at least 2"),
            (count(self.run.threads), "run.threads", few),
            (self.run.dir.as_deref() != Some(""), "run.dir", "a folder, or null"),
            (!data.train.is_empty(), "data.train", shards),
            (!data.val.is_empty(), "data.val", shards),
            (
                data.cache.as_ref().is_none_or(|cache| positive(cache.limit_gb)),
                "data.cache.limit_gb",
                "above 0",
            ),
            ((2..=1_000_000).contains(&data.classes), "data.classes", "2 to 1000000"),
            (matches!(data.channels, 1 | 3), "data.channels", "1 or 3"),
            ((8..=2048).contains(&data.image_size), "data.image_size", "8 to 2048 pixels"),
            (channels(data.mean.len()), "data.mean", list),
            (channels(data.std.len()), "data.std", list),
            (data.std.iter().all(|&std| positive(std)), "data.std", "above 0"),
            (data.mean.iter().all(|mean| mean.is_finite()), "data.mean", "finite"),
            ((1..=64).contains(&data.views), "data.views", "1 to 64"),
            ((0.0..=1.0).contains(&data.flip), "data.flip", "0 to 1"),
            (data.train_samples != Some(0), "data.train_samples", "at least 1, or null"),
            (count(data.decode_threads), "data.decode_threads", few),
            (
                data.lanes.is_none_or(|lanes| {
                    lanes.window > 0 && lanes.count > 0 && optim.batch_size.is_multiple_of(lanes.count)
                }),
                "data.lanes",
                "a window of at least 1 and a count that divides optim.batch_size, or null",
            ),
            ((1..=64).contains(&data.prefetch), "data.prefetch", "1 to 64"),
            ((0.0..=1.0).contains(&data.max_bad_fraction), "data.max_bad_fraction", "0 to 1"),
            (hidden, "model.router.hidden", "a ratio above 0 and up to 16, or 1 to 65536 units"),
            (model.router.open_bias.is_finite(), "model.router.open_bias", "finite"),
            (positive(model.router.temperature), "model.router.temperature", "above 0"),
            (not_negative(self.consistency.weight), "consistency.weight", any),
            (not_negative(self.consistency.margin), "consistency.margin", any),
            (not_negative(self.diversity.weight), "diversity.weight", any),
            (not_negative(self.diversity.margin), "diversity.margin", any),
            (not_negative(cost.gamma), "cost.gamma", any),
            (cost.budget_gmacs.is_none_or(positive), "cost.budget_gmacs", "above 0, or null"),
            (positive(cost.gamma_step), "cost.gamma_step", "above 0"),
            (
                !cost.calibrate || cost.budget_gmacs.is_some(),
                "cost.calibrate",
                "false, without a budget_gmacs",
            ),
            (cost.calibration_samples > 0, "cost.calibration_samples", "at least 1"),
            (not_negative(self.target_rate.weight), "target_rate.weight", any),
            ((0.0..=1.0).contains(&self.target_rate.rate), "target_rate.rate", "0 to 1"),
            (not_negative(self.run_rate.weight), "run_rate.weight", any),
            (batch(optim.batch_size), "optim.batch_size", "1 to 1048576"),
            (batch(optim.eval_batch_size), "optim.eval_batch_size", "1 to 1048576"),
            ((0.0..1.0).contains(&optim.momentum), "optim.momentum", "0 to 1, 1 excluded"),
            (not_negative(optim.weight_decay), "optim.weight_decay", any),
            (
                optim.accumulate > 0 && optim.batch_size.is_multiple_of(optim.accumulate.max(1)),
                "optim.accumulate",
                "a divisor of optim.batch_size",
            ),
            ((0.0..1.0).contains(&optim.label_smoothing), "optim.label_smoothing", "0 to 1, 1 excluded"),
            (optim.clip_norm.is_none_or(positive), "optim.clip_norm", "above 0, or null"),
            (
                optim.ema_decay.is_none_or(|decay| decay > 0.0 && decay < 1.0),
                "optim.ema_decay",
                "between 0 and 1, or null",
            ),
            (optim.lr_batch_size.is_none_or(batch), "optim.lr_batch_size", "1 to 1048576, or null"),
            (self.collective.timeout_s > 0, "collective.timeout_s", "at least 1"),
            (self.collective.first_timeout_s > 0, "collective.first_timeout_s", "at least 1"),
            (self.collective.bucket_mb > 0.0, "collective.bucket_mb", "more than 0"),
            (self.collective.first_bucket_mb > 0.0, "collective.first_bucket_mb", "more than 0"),
            (!self.stages.is_empty(), "stages", "a list of at least one stage"),
        ]
        .map(|(fine, key, wanted)| (fine, key.to_owned(), wanted.to_owned()))
        .into()
    }
}
