//! The learning rate and the gates' temperature over the stages.

use crate::config::{Config, Optim, Routers, Schedule, Stage};
use std::f64::consts::PI;

/// The learning rate at `epoch` of `stage`, which has a fraction: its `lr`, scaled to the batch size (`optim.lr_batch_size`),
/// times the warm-up and the schedule's factor.
pub fn learning_rate(config: &Config, stage: &Stage, epoch: f64) -> f64 {
    let optim = &config.optim;
    let warmup = if epoch < stage.warmup_epochs { epoch / stage.warmup_epochs } else { 1.0 };
    stage.lr * scale(optim) * warmup * factor(stage, epoch)
}

/// T of the gates at `epoch` of the stage number `stage`.
pub fn temperature(config: &Config, stage: usize, epoch: f64) -> f64 {
    config.model.router.temperature.at_progress(router_progress(config, stage, epoch))
}

/// The share of the budget's ramp that has passed at `epoch` of the stage number `stage`, 0 to 1.
pub fn budget_ramp(config: &Config, stage: usize, epoch: f64) -> f64 {
    let progress = router_progress(config, stage, epoch);
    if progress < config.cost.budget_ramp { progress / config.cost.budget_ramp } else { 1.0 }
}

/// The share of the epochs whose routers train that have passed at `epoch` of the stage number `stage`.
fn router_progress(config: &Config, stage: usize, epoch: f64) -> f64 {
    let training = |stages: &[Stage]| {
        stages.iter().filter(|stage| stage.routers == Routers::Train).map(|stage| stage.epochs).sum::<u64>()
            as f64
    };
    (training(&config.stages[..stage]) + epoch) / training(&config.stages)
}

/// The factor of a stage's `lr` that follows from the batch size.
fn scale(optim: &Optim) -> f64 {
    optim.lr_batch_size.map_or(1.0, |reference| optim.batch_size as f64 / reference as f64)
}

/// A line for each stage whose highest learning rate is not its `lr`, because the batch size scales it.
pub fn describe_lr_scale(config: &Config) -> Vec<String> {
    let optim = &config.optim;
    let Some(reference) = optim.lr_batch_size.filter(|&reference| reference != optim.batch_size) else {
        return Vec::new();
    };
    let line = |stage: &Stage| {
        format!(
            "{}: lr {} × {}/{reference} = {} (optim.batch_size / optim.lr_batch_size)",
            stage.name,
            stage.lr,
            optim.batch_size,
            format_lr(stage.lr * scale(optim))
        )
    };
    config.stages.iter().map(line).collect()
}

/// The factor of the schedule of `stage` at `epoch`.
fn factor(stage: &Stage, epoch: f64) -> f64 {
    let epochs = stage.epochs as f64;
    match &stage.schedule {
        Schedule::Constant => 1.0,
        Schedule::MultiStep { milestones, factor } => {
            let passed = milestones.iter().filter(|&&milestone| epoch >= milestone as f64).count();
            factor.powi(passed as i32)
        }
        Schedule::Cosine => cosine(1.0, 0.0, epoch / epochs),
        Schedule::Linear if epoch < stage.warmup_epochs => 1.0,
        Schedule::Linear => (epochs - epoch) / (epochs - stage.warmup_epochs).max(f64::MIN_POSITIVE),
        Schedule::OneCycle { rise } => {
            let start = 1.0 / 25.0;
            let progress = epoch / epochs;
            if progress < *rise {
                cosine(start, 1.0, progress / rise)
            } else {
                cosine(1.0, start / 1e4, (progress - rise) / (1.0 - rise))
            }
        }
    }
}

/// From `from` to `to` along half a cosine, at `progress` in 0 to 1.
fn cosine(from: f64, to: f64, progress: f64) -> f64 {
    to + (from - to) * 0.5 * (1.0 + (PI * progress).cos())
}

/// A learning rate for the log: 0.0500, 2.3e-5.
pub fn format_lr(lr: f64) -> String {
    if lr == 0.0 || lr >= 1e-3 { format!("{lr:.4}") } else { format!("{lr:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Temperature, TemperatureRange};

    /// Four epochs in which routers train, in two stages, with a frozen one between them.
    #[test]
    fn temperature_follows_the_epochs_in_which_routers_train() {
        let mut config = Config::default();
        let stage = |routers, epochs| Stage { routers, epochs, ..Stage::default() };
        config.stages = vec![stage(Routers::Train, 3), stage(Routers::Freeze, 7), stage(Routers::Train, 1)];
        assert_eq!(temperature(&config, 2, 0.5), 1.0, "constant by default");
        let linear = TemperatureRange { from: 5.0, to: 1.0 };
        config.model.router.temperature = Temperature::Linear { linear };
        for (stage, epoch, expected) in
            [(0, 0.0, 5.0), (0, 1.5, 3.5), (2, 0.0, 2.0), (2, 0.5, 1.5), (2, 1.0, 1.0)]
        {
            assert_eq!(temperature(&config, stage, epoch), expected, "stage {stage}, epoch {epoch}");
        }
    }

    /// Over the first third of six epochs in which routers train, in two stages.
    #[test]
    fn budget_ramp_ends_at_its_share_of_the_epochs_in_which_routers_train() {
        let mut config = Config::default();
        let stage = |routers, epochs| Stage { routers, epochs, ..Stage::default() };
        config.stages = vec![stage(Routers::Train, 1), stage(Routers::Freeze, 7), stage(Routers::Train, 5)];
        config.cost.budget_ramp = 1.0 / 3.0;
        for (stage, epoch, expected) in
            [(0, 0.0, 0.0), (0, 0.5, 0.25), (2, 0.5, 0.75), (2, 1.0, 1.0), (2, 5.0, 1.0)]
        {
            let ramp = budget_ramp(&config, stage, epoch);
            assert!((ramp - expected).abs() < 1e-12, "stage {stage}, epoch {epoch}: {ramp}");
        }
        config.cost.budget_ramp = 0.0;
        assert_eq!(budget_ramp(&config, 0, 0.0), 1.0, "no ramp");
    }

    #[test]
    fn schedules_follow_their_formulas() {
        use Schedule::*;
        let mut config = Config::default();
        let stage = |schedule, warmup_epochs| Stage {
            epochs: 10,
            lr: 0.2,
            schedule,
            warmup_epochs,
            ..Default::default()
        };
        let steps = stage(MultiStep { milestones: vec![4, 8], factor: 0.1 }, 2.0);
        for (epoch, lr) in [(0.0, 0.0), (1.0, 0.1), (3.9, 0.2), (4.0, 0.02), (9.0, 0.002)] {
            assert!((learning_rate(&config, &steps, epoch) - lr).abs() < 1e-12, "{epoch}");
        }
        let linear = stage(Linear, 2.0);
        for (epoch, lr) in [(0.0, 0.0), (1.0, 0.1), (2.0, 0.2), (6.0, 0.1), (10.0, 0.0)] {
            assert!((learning_rate(&config, &linear, epoch) - lr).abs() < 1e-12, "{epoch}");
        }
        // OneCycle: torch.optim.lr_scheduler.OneCycleLR(max_lr=0.2, total_steps=101, pct_start=0.3) at 0, 15, 30, 65, 100.
        for (schedule, rates) in [
            (Cosine, vec![(0.0, 0.2), (5.0, 0.1), (10.0, 0.0)]),
            (
                OneCycle { rise: 0.3 },
                vec![(0.0, 0.008), (1.5, 0.104), (3.0, 0.2), (6.5, 0.1000004), (10.0, 8e-7)],
            ),
        ] {
            for (epoch, lr) in rates {
                let found = learning_rate(&config, &stage(schedule.clone(), 0.0), epoch);
                assert!((found - lr).abs() < 1e-9, "{epoch}: {found}");
            }
        }
        config.optim.batch_size = 512;
        config.optim.lr_batch_size = Some(256);
        let lr = learning_rate(&config, &stage(Constant, 0.0), 1.0);
        assert!((lr - 0.4).abs() < 1e-12, "twice the batch size, twice the rate");
        config.stages = vec![Stage { lr: 0.01, ..Stage::default() }];
        config.optim.batch_size = 8;
        let expected = "train: lr 0.01 × 8/256 = 3.1e-4 (optim.batch_size / optim.lr_batch_size)";
        assert_eq!(describe_lr_scale(&config), [expected]);
        config.optim.batch_size = 256;
        assert!(describe_lr_scale(&config).is_empty(), "the rate is the stage's own");
    }
}
