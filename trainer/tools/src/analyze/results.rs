//! What the files of an analysis are made from.

use super::cli::Args;
use super::collect::{Observations, Subject};
use super::measures;
use super::study::Study;
use codinet_trainer::metrics::routing::Histogram;

/// An analysis on rank 0: its arguments, images, observations and numbers.
pub struct Results<'a> {
    pub args: &'a Args,
    pub subject: &'a Subject<'a>,
    pub observations: &'a Observations,
    pub study: &'a Study,
    /// The classes' names.
    pub classes: Vec<String>,
}

impl Results<'_> {
    pub fn histogram(&self) -> Histogram {
        let Observations { paths, gates, labels, .. } = self.observations;
        Histogram::new(paths, *gates, labels.len())
    }

    pub fn rates_by_class(&self) -> Vec<Vec<f64>> {
        let Observations { paths, gates, labels, .. } = self.observations;
        measures::rates_by_class(paths, *gates, labels, self.classes.len())
    }
}
