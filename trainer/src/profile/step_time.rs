//! The parts of a training step's time.

use crate::sys::{Phase, Span};

/// A step's time and its parts, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StepTime {
    /// All of it: the sum of the following, except `hidden`.
    pub step: f64,
    /// Waiting for the loader.
    pub loader: f64,
    /// The forward pass and the objective, without waiting for collectives.
    pub forward: f64,
    /// The backward pass, without waiting for collectives.
    pub backward: f64,
    /// Waiting for collectives.
    pub exposed: f64,
    /// The update.
    pub optimizer: f64,
    /// The rest: creating the batch's tensors, drawing noise, logging.
    pub host: f64,
    /// Collectives while something else is computed.
    pub hidden: f64,
}

impl StepTime {
    /// Each step in `spans`.
    pub fn of_steps(spans: &[Span]) -> Vec<Self> {
        let steps = spans.iter().filter(|span| span.phase == Phase::Step);
        steps.map(|step| Self::of_step(step, spans)).collect()
    }

    fn of_step(step: &Span, spans: &[Span]) -> Self {
        let intervals = |phase| {
            let inside = spans.iter().filter(move |span| span.phase == phase);
            union(inside.map(|span| (span.start.max(step.start), span.end.min(step.end))).collect())
        };
        let waits = intervals(Phase::Wait);
        let without_waits = |phase| {
            let intervals = intervals(phase);
            length(&intervals) - overlap(&intervals, &waits)
        };
        let mut time = Self {
            step: step.end - step.start,
            loader: without_waits(Phase::Loader),
            forward: without_waits(Phase::Forward),
            backward: without_waits(Phase::Backward),
            exposed: length(&waits),
            optimizer: without_waits(Phase::Optimizer),
            host: 0.0,
            hidden: without_waits(Phase::Collective),
        };
        time.host = time.step - time.parts().iter().map(|(_, part)| part).sum::<f64>();
        time
    }

    /// The median over steps, each part for itself.
    pub fn median(steps: &[Self]) -> Self {
        let median = |part: fn(&Self) -> f64| {
            let mut times: Vec<f64> = steps.iter().map(part).collect();
            times.sort_by(f64::total_cmp);
            let middle = times.len() / 2;
            if times.len() % 2 == 1 { times[middle] } else { f64::midpoint(times[middle - 1], times[middle]) }
        };
        Self {
            step: median(|time| time.step),
            loader: median(|time| time.loader),
            forward: median(|time| time.forward),
            backward: median(|time| time.backward),
            exposed: median(|time| time.exposed),
            optimizer: median(|time| time.optimizer),
            host: median(|time| time.host),
            hidden: median(|time| time.hidden),
        }
    }

    /// The parts that add up to the step, by name.
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("loader wait", self.loader),
            ("forward", self.forward),
            ("backward", self.backward),
            ("collectives exposed", self.exposed),
            ("optimizer", self.optimizer),
            ("host", self.host),
        ]
    }

    /// The rows of the table: the parts, their sum, and what the sum does not contain.
    pub fn rows(&self) -> Vec<(&'static str, f64)> {
        let mut rows = self.parts().to_vec();
        rows.push(("step", self.step));
        rows.push(("collectives hidden", self.hidden));
        rows
    }
}

/// The intervals in order, overlapping ones merged, empty ones left out.
fn union(mut intervals: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    intervals.retain(|(start, end)| start < end);
    intervals.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut merged: Vec<(f64, f64)> = Vec::new();
    for (start, end) in intervals {
        match merged.last_mut().filter(|last| start <= last.1) {
            Some(last) => last.1 = last.1.max(end),
            None => merged.push((start, end)),
        }
    }
    merged
}

fn length(intervals: &[(f64, f64)]) -> f64 {
    intervals.iter().map(|(start, end)| end - start).sum()
}

/// The length that two unions have in common.
fn overlap(a: &[(f64, f64)], b: &[(f64, f64)]) -> f64 {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.1.min(b.1) - a.0.max(b.0)));
    pairs.filter(|length| *length > 0.0).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_step_and_collectives_hide_behind_backward() {
        let spans = [
            (Phase::Loader, 10.0, 11.0),
            (Phase::Wait, 14.0, 15.0), // inside forward
            (Phase::Collective, 14.0, 15.0),
            (Phase::Forward, 12.0, 20.0),
            (Phase::Collective, 25.0, 29.0), // hidden
            (Phase::Collective, 29.0, 33.0), // its last part exposed
            (Phase::Backward, 20.0, 31.0),
            (Phase::Wait, 31.0, 33.0),
            (Phase::Optimizer, 33.0, 35.0),
            (Phase::Step, 10.0, 36.0),
            (Phase::Collective, 37.0, 40.0), // in no step
        ];
        let spans = spans.map(|(phase, start, end)| Span { phase, start, end });
        let expected = StepTime {
            step: 26.0,
            loader: 1.0,
            forward: 7.0,
            backward: 11.0,
            exposed: 3.0,
            optimizer: 2.0,
            host: 2.0,
            hidden: 6.0,
        };
        assert_eq!(StepTime::of_steps(&spans), [expected]);
        assert_eq!(StepTime::median(&[expected, StepTime { step: 28.0, ..expected }]).step, 27.0);
    }
}
