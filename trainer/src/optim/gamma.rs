//! γ tuned to a compute budget (Section 3.3, "γ is tuned adaptive").

use serde::{Deserialize, Serialize};

/// The decay per step of the moving average of the network's MACs.
const EMA_DECAY: f64 = 0.95;
/// The proportional term, in steps of the integral term. Gates that close lose their gradient, so γ must turn as soon as the
/// MACs meet the budget, and not only after the integral has unwound.
const PROPORTIONAL_STEPS: f64 = 500.0;
/// The limit of γ's integral, in steps at a gap of 100 %: an unreachable budget does not drive γ away for ever.
const INTEGRAL_LIMIT: f64 = 5000.0;

/// Dual ascent on mean MACs = budget; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GammaController {
    /// γ of the next step.
    pub gamma: f64,
    /// γ's integral term.
    base: f64,
    /// Moving average of the network's MACs by hard decisions, in billions; `None` before the first step.
    pub gmacs: Option<f64>,
    /// The network's GMACs at the first step, where the budget's ramp begins; `None` before it.
    #[serde(default)]
    start: Option<f64>,
}

impl GammaController {
    /// A controller that starts at `gamma`.
    pub fn new(gamma: f64) -> Self {
        Self { gamma, base: gamma, gmacs: None, start: None }
    }

    /// Adds a step whose hard decisions cost `gmacs`; returns by which share the recent mean exceeds the budget of the step. That
    /// budget goes along a straight line from the network's first GMACs, at `ramp` = 0, to `budget`, at `ramp` = 1.
    pub fn gap(&mut self, gmacs: f64, budget: f64, ramp: f64) -> f64 {
        let mean = self.gmacs.map_or(gmacs, |mean| EMA_DECAY * mean + (1.0 - EMA_DECAY) * gmacs);
        let start = *self.start.get_or_insert(mean);
        let budget = start + (budget - start) * ramp;
        self.gmacs = Some(mean);
        (mean - budget) / budget
    }

    /// Updates γ: it rises by `step_size` for each 100 % that the MACs exceed the budget, and falls likewise, below 0 if need be,
    /// where blocks are rewarded for running. A proportional term damps the oscillation (Stooke et al., arXiv 2007.03964).
    pub fn update(&mut self, gap: f64, step_size: f64) {
        let limit = INTEGRAL_LIMIT * step_size;
        self.base = (self.base + step_size * gap).clamp(-limit, limit);
        self.gamma = self.base + PROPORTIONAL_STEPS * step_size * gap;
    }
}

#[cfg(test)]
mod tests {
    use super::GammaController;

    #[test]
    fn gamma_rises_above_the_budget() {
        let mut controller = GammaController::new(0.01);
        controller.update(1.0, 0.001);
        assert!((controller.gamma - (0.01 + 0.001 + 0.5)).abs() < 1e-12);
        controller.update(0.95, 0.001);
        assert!((controller.gamma - (0.011 + 0.95 * 0.001 + 0.5 * 0.95)).abs() < 1e-12);
    }

    #[test]
    fn gamma_falls_below_zero_under_the_budget() {
        let mut controller = GammaController::new(0.0);
        (0..100).for_each(|_| controller.update(-0.2, 2e-4));
        assert!(controller.gamma < 0.0);
    }

    /// A network whose MACs fall with a lag as γ rises converges to its budget.
    #[test]
    fn gamma_converges_where_macs_meet_the_budget() {
        let mut controller = GammaController::new(0.0);
        let mut gmacs = 1.0;
        for _ in 0..20_000 {
            gmacs += 0.02 * ((1.0 - 10.0 * controller.gamma).clamp(0.1, 1.0) - gmacs);
            let gap = controller.gap(gmacs, 0.6, 1.0);
            controller.update(gap, 2e-4);
        }
        assert!((gmacs - 0.6).abs() < 1e-3, "{gmacs}");
        assert!((controller.gamma - 0.04).abs() < 1e-3, "{}", controller.gamma);
    }

    /// Of the mean of about twenty steps: 2, then 0.95·2 + 0.05·1.
    #[test]
    fn gap_is_that_of_the_recent_mean() {
        let mut controller = GammaController::new(0.0);
        assert!((controller.gap(2.0, 1.0, 1.0) - 1.0).abs() < 1e-12);
        assert_eq!(controller.gmacs, Some(2.0));
        assert!((controller.gap(1.0, 1.0, 1.0) - 0.95).abs() < 1e-12);
    }

    #[test]
    fn budget_of_a_step_is_on_the_ramp() {
        let mut controller = GammaController::new(0.0);
        assert_eq!(controller.gap(1.0, 0.6, 0.0), 0.0);
        controller.gmacs = Some(0.8);
        assert!(controller.gap(0.8, 0.6, 0.5).abs() < 1e-12);
        assert!((controller.gap(0.8, 0.6, 1.0) - 1.0 / 3.0).abs() < 1e-12);
    }
}
