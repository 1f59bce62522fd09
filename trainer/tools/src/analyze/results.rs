//! What the files of an analysis are made from.

use super::cli::Args;
use super::collect::{Observations, Subject};
use super::measures;
use super::study::Study;
use codinet_trainer::metrics::classes::{Confusion, Prediction, confident_mistakes};
use codinet_trainer::metrics::routing::Histogram;
use codinet_trainer::run::LISTED_MISTAKES;

/// An analysis on rank 0: its arguments, images, observations and numbers.
pub struct Results<'a> {
    pub args: &'a Args,
    pub subject: &'a Subject<'a>,
    pub observations: &'a Observations,
    pub study: &'a Study,
    /// The classes' names.
    pub classes: Vec<String>,
    pub confusion: Confusion,
    /// The images that are most confidently wrong.
    pub mistakes: Vec<Prediction>,
}

/// The results of the images of one class.
pub struct ClassResults {
    pub class: usize,
    pub images: u64,
    /// None without images, where the means are NaN.
    pub accuracy: Option<f64>,
    /// Mean gated blocks that run.
    pub blocks_run: f64,
    /// Mean MACs, in billions.
    pub gmacs: f64,
}

impl<'a> Results<'a> {
    pub fn new(
        args: &'a Args,
        subject: &'a Subject<'a>,
        observations: &'a Observations,
        study: &'a Study,
        classes: Vec<String>,
    ) -> Self {
        let predictions = observations.by_image();
        let confusion = Confusion::new(&predictions, classes.len());
        let mistakes = confident_mistakes(&predictions, LISTED_MISTAKES);
        Self { args, subject, observations, study, classes, confusion, mistakes }
    }

    pub fn histogram(&self) -> Histogram {
        let Observations { paths, gates, labels, .. } = self.observations;
        Histogram::new(paths, *gates, labels.len())
    }

    /// The results of each class, in the order of their numbers.
    pub fn by_class(&self) -> Vec<ClassResults> {
        let accuracies = self.confusion.accuracies();
        let rates = self.rates_by_class();
        let class = |class: usize| ClassResults {
            class,
            images: self.confusion.images()[class],
            accuracy: accuracies[class],
            blocks_run: rates[class].iter().fold(0.0, |sum, rate| sum + rate),
            gmacs: self.subject.net.costs.mean_macs(&rates[class]) / 1e9,
        };
        (0..self.classes.len()).map(class).collect()
    }

    pub fn rates_by_class(&self) -> Vec<Vec<f64>> {
        let Observations { paths, gates, labels, .. } = self.observations;
        measures::rates_by_class(paths, *gates, labels, self.classes.len())
    }
}
