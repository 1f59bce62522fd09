//! How far a run is: what rank 0 shows after a step, and when the run will end. Nothing here waits for the device or for
//! another rank.

use super::Trainer;
use crate::config::{Config, Routers};
use crate::metrics::HostCopy;
use crate::optim::calibration;
use crate::run::checkpoint::TrainState;
use crate::sys::held_memory;
use crate::text;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tch::Device;

/// The mean time of a step covers about this much time.
const WINDOW: f64 = 60.0;
/// Steps are timed for this long before they are extrapolated, in seconds.
const MIN_TIMED: f64 = 3.0;
/// The weight of the last step's loss in the loss that is shown.
const LOSS_WEIGHT: f64 = 0.1;
/// Memory is read at most this often.
const MEMORY_EVERY: Duration = Duration::from_secs(2);

/// What rank 0 knows about the run's pace.
#[derive(Default)]
pub(super) struct Progress {
    /// The end of the last step; `None` at the start and after an evaluation, so that the next step, which waits for its first
    /// batch, is not timed.
    last_end: Option<Instant>,
    /// Mean seconds of a step.
    step_seconds: f64,
    timed_steps: u64,
    timed_seconds: f64,
    evaluated_images: u64,
    evaluation_seconds: f64,
    /// This rank's losses in the last steps, on their way to the host.
    losses: VecDeque<HostCopy>,
    /// This rank's loss, smoothed over the last steps.
    loss: Option<f64>,
    memory: Option<(Instant, u64)>,
}

/// The rest of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WorkLeft {
    steps: u64,
    /// Images to evaluate, each as often as it will be.
    images: u64,
}

impl Progress {
    /// Counts a step that has ended now. `loss` is this rank's in it.
    fn end_step(&mut self, now: Instant, loss: Option<HostCopy>) {
        if let Some(last) = self.last_end.replace(now) {
            let seconds = (now - last).as_secs_f64();
            self.timed_steps += 1;
            self.timed_seconds += seconds;
            let weight = (seconds / WINDOW).max(1.0 / self.timed_steps as f64).min(1.0);
            self.step_seconds += weight * (seconds - self.step_seconds);
        }
        self.losses.extend(loss);
        while let Some(loss) = self.losses.pop_front_if(|loss| loss.is_complete()) {
            let value = loss.wait()[0];
            self.loss = Some(match self.loss {
                Some(mean) if mean.is_finite() => mean + LOSS_WEIGHT * (value - mean),
                _ => value,
            });
        }
    }

    /// Counts an evaluation of `images` that has ended now.
    pub fn end_evaluation(&mut self, images: u64, seconds: f64) {
        self.evaluated_images += images;
        self.evaluation_seconds += seconds;
        self.last_end = None;
    }

    /// Seconds until the run's end; `None` before enough steps are timed.
    fn eta(&self, left: WorkLeft, images_per_step: u64) -> Option<f64> {
        if self.timed_seconds < MIN_TIMED {
            return None;
        }
        let image_seconds = if self.evaluated_images > 0 {
            self.evaluation_seconds / self.evaluated_images as f64
        } else {
            // A forward pass is about a third of a step's work.
            self.step_seconds / images_per_step as f64 / 3.0
        };
        Some(left.steps as f64 * self.step_seconds + left.images as f64 * image_seconds)
    }

    fn memory(&mut self, device: Device) -> u64 {
        let now = Instant::now();
        match self.memory {
            Some((read, bytes)) if now - read < MEMORY_EVERY => bytes,
            _ => self.memory.insert((now, held_memory(device))).1,
        }
    }
}

/// The rest of a run that stands at `state`. An epoch whose steps are over is still to be evaluated.
fn work_left(config: &Config, state: &TrainState, steps_per_epoch: u64, validation_images: u64) -> WorkLeft {
    let passes = 1 + u64::from(config.optim.ema_decay.is_some());
    let mut left = WorkLeft::default();
    for (stage_index, stage) in config.stages.iter().enumerate().skip(state.stage) {
        let done = if stage_index == state.stage { state.epoch } else { 0 };
        left.steps += (stage.epochs - done.min(stage.epochs)) * steps_per_epoch;
        let evaluations = (done + 1..=stage.epochs)
            .filter(|epoch| *epoch == stage.epochs || epoch.is_multiple_of(config.run.evaluate_every));
        left.images += evaluations.count() as u64 * passes * validation_images;
        if stage.routers == Routers::Train && config.gated() {
            left.images += validation_images; // the gap between training and inference
        }
        if config.calibrates() {
            left.images += passes * calibration::PASSES * config.cost.calibration_samples as u64;
        }
    }
    left.steps -= (state.epoch_samples / config.optim.batch_size as u64).min(left.steps);
    left
}

impl Trainer<'_> {
    /// Rank 0, before the first step.
    pub(super) fn start_progress(&mut self) {
        let steps = self.state.step + self.work_left().steps;
        self.log.start_progress(self.state.step, steps, &self.epoch_of_run());
    }

    /// Rank 0, after each step: moves the bar, or prints a line if the last one is long ago. The loss is this rank's, smoothed.
    pub(super) fn show_progress(&mut self) {
        if !self.log.writes() {
            return;
        }
        self.progress.end_step(Instant::now(), self.metrics.copy_loss());
        let step_time = Duration::from_secs_f64(self.progress.step_seconds);
        if self.log.status_is_due(step_time) {
            let images = (self.config.optim.batch_size * self.config.data.views) as f64;
            let speed = (self.progress.timed_steps > 0).then(|| images / self.progress.step_seconds);
            let status = self.status(self.progress.loss, speed);
            self.log.show_status(self.state.step, &status, false);
        }
    }

    /// Rank 0: the bar says that the network is evaluated.
    pub(super) fn show_evaluation(&mut self) {
        if self.log.has_bar() {
            let status = format!("{} · evaluating{}", self.epoch_of_run(), self.eta());
            self.log.show_status(self.state.step, &status, false);
        }
    }

    /// Rank 0: a line for a person about the last steps.
    pub(super) fn status(&mut self, loss: Option<f64>, images_per_second: Option<f64>) -> String {
        let mut status = self.epoch_of_run();
        if let Some(loss) = loss {
            status += &format!(" · loss {loss:.4}");
        }
        if let Some(speed) = images_per_second {
            let digits = usize::from(speed < 10.0);
            status += &format!(" · {speed:.digits$} img/s");
        }
        let gigabytes = self.progress.memory(self.device) as f64 / 1e9;
        status + &format!(" · {gigabytes:.1} GB{}", self.eta())
    }

    /// The epoch, counted over all stages.
    fn epoch_of_run(&self) -> String {
        let stages = &self.config.stages;
        let all: u64 = stages.iter().map(|stage| stage.epochs).sum();
        let earlier: u64 = stages[..self.state.stage].iter().map(|stage| stage.epochs).sum();
        format!("epoch {}/{all}", (earlier + self.state.epoch + 1).min(all))
    }

    fn eta(&self) -> String {
        let images_per_step = (self.config.optim.batch_size * self.config.data.views) as u64;
        let eta = self.progress.eta(self.work_left(), images_per_step);
        eta.map(|seconds| format!(" · eta {}", text::duration(seconds))).unwrap_or_default()
    }

    fn work_left(&self) -> WorkLeft {
        let steps = self.data.steps_per_epoch(self.config);
        work_left(self.config, &self.state, steps, self.data.val.set.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config() -> Config {
        let set = [
            "stages=[{name: relaxed, epochs: 3, lr: 0.1}, {name: hard, epochs: 2, lr: 0.1, routers: freeze}]",
            "optim.batch_size=8",
            "run.evaluate_every=2",
        ];
        config::load("fashion_r20.yaml", &set.map(Into::into)).unwrap()
    }

    /// 10 steps an epoch, 100 validation images.
    fn left_at(stage: usize, epoch: u64, steps: u64) -> WorkLeft {
        let state = TrainState { stage, epoch, epoch_samples: 8 * steps, ..TrainState::default() };
        work_left(&config(), &state, 10, 100)
    }

    #[test]
    fn rest_of_a_run_covers_later_stages_and_evaluations() {
        // Evaluations after epochs 2 and 3, the relaxed one, and one after the second stage.
        assert_eq!(left_at(0, 0, 0), WorkLeft { steps: 50, images: 400 });
        assert_eq!(left_at(0, 2, 4), WorkLeft { steps: 26, images: 300 });
        assert_eq!(left_at(1, 1, 10), WorkLeft { steps: 0, images: 100 });
        assert_eq!(left_at(2, 0, 0), WorkLeft::default());
    }

    /// Steps of these seconds, one after the other.
    fn timed(seconds: &[f64]) -> Progress {
        let mut progress = Progress::default();
        let mut now = Instant::now();
        progress.end_step(now, None);
        for seconds in seconds {
            now += Duration::from_secs_f64(*seconds);
            progress.end_step(now, None);
        }
        progress
    }

    #[test]
    fn eta_waits_for_timed_steps_and_covers_evaluation() {
        let left = WorkLeft { steps: 100, images: 600 };
        let near =
            |eta: Option<f64>, expected: f64| eta.is_some_and(|eta| (eta / expected - 1.0).abs() < 1e-6);
        assert_eq!(timed(&[]).eta(left, 10), None);
        assert_eq!(timed(&[0.5; 5]).eta(left, 10), None);
        // A step of 10 images takes 0.5 s, so that an image's forward pass takes about 1/60 s.
        let mut progress = timed(&[0.5; 6]);
        assert!(near(progress.eta(left, 10), 50.0 + 10.0));
        // Measured evaluations replace the estimate, and the pause is no step.
        progress.end_evaluation(100, 5.0);
        progress.end_step(Instant::now() + Duration::from_secs(1000), None);
        assert!(near(progress.eta(left, 10), 50.0 + 30.0));
    }

    #[test]
    fn eta_follows_the_last_minute() {
        let left = WorkLeft { steps: 100, images: 0 };
        let slow_then_fast = [vec![2.0; 30], vec![1.0; 300]].concat();
        let eta = timed(&slow_then_fast).eta(left, 1).unwrap();
        assert!((100.0..102.0).contains(&eta), "{eta}");
    }

    #[test]
    fn loss_is_shown_without_a_wait() {
        let mut progress = Progress::default();
        progress.end_step(Instant::now(), Some(HostCopy::start(&tch::Tensor::from(2.5))));
        assert_eq!(progress.loss, Some(2.5));
        progress.end_step(Instant::now(), Some(HostCopy::start(&tch::Tensor::from(1.5))));
        assert!((progress.loss.unwrap() - 2.4).abs() < 1e-9, "smoothed");
    }
}
