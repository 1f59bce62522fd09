//! When a run is evaluated, and its gates are calibrated: at the ends of epochs and stages.

use super::Trainer;
use crate::config::{Routers, Stage};
use crate::model::Decisions;
use crate::optim::budget;
use crate::run::checkpoint::Best;
use crate::sys::error::{Error, Result};
use crate::train::evaluate::{Evaluation, evaluate};

impl Trainer<'_> {
    /// All ranks: sets the bias on all gates, of the weights and of their running mean, where the config asks for it.
    pub(super) fn calibrate(&mut self, stage: &Stage) -> Result<()> {
        let (world, config) = (self.world, self.config);
        let Some(budget) = config.budget().filter(|_| config.calibrates()) else { return Ok(()) };
        let said = budget::calibrate(world, config, &self.net, &self.input, budget)?;
        self.log.say(&format!("{}: {said}", stage.name));
        if let Some(ema) = &mut self.ema {
            ema.exchange(&self.net.params);
            let said = budget::calibrate(world, config, &self.net, &self.input, budget);
            ema.exchange(&self.net.params);
            self.log.say(&format!("{}, mean of weights: {}", stage.name, said?));
        }
        Ok(())
    }

    /// All ranks: evaluation of the network as it stands.
    fn evaluate(&self, decisions: Decisions) -> Result<Evaluation> {
        evaluate(self.world, self.config, &self.net, &self.input.val, decisions)
    }

    /// All ranks: evaluation with hard decisions, of the weights and of their running mean.
    pub(super) fn evaluate_both(&mut self) -> Result<Evaluation> {
        let mut evaluation = self.evaluate(Decisions::Hard)?;
        if let Some(ema) = &mut self.ema {
            ema.exchange(&self.net.params);
            let of_mean = evaluate(self.world, self.config, &self.net, &self.input.val, Decisions::Hard);
            ema.exchange(&self.net.params);
            evaluation.ema = Some(Box::new(of_mean?));
        }
        Ok(evaluation)
    }

    /// All ranks: evaluation at an epoch's end; rank 0 records it.
    pub(super) fn evaluate_epoch(&mut self, stage: &Stage) -> Result<Evaluation> {
        let evaluation = self.evaluate_both()?;
        if !evaluation.ce.is_finite() {
            return Err(Error::diverged(
                self.state.step,
                "the validation images' cross entropy is not finite",
            ));
        }
        let (top1, step) = (evaluation.top1, self.state.step);
        let on_budget = self.config.budget().is_none_or(|budget| evaluation.gmacs <= 1.02 * budget);
        if on_budget && self.state.best.is_none_or(|best| top1 > best.top1) {
            self.state.best = Some(Best { top1, step });
        }
        self.report_evaluation(stage, &evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: top-1 by the decisions that the stage trained with, but without noise; `None` where those are the
    /// hard ones.
    pub(super) fn evaluate_relaxed(&self, stage: &Stage) -> Result<Option<f64>> {
        let router = &self.config.model.router;
        if stage.routers == Routers::Freeze || !self.config.gated() {
            return Ok(None);
        }
        let (temperature, relaxation) = (router.temperature, router.relaxation);
        Ok(Some(self.evaluate(Decisions::Relaxed { noise: None, temperature, relaxation })?.top1))
    }
}
