//! A table of runs in one file: rows that change a few keys of a config, each with the paper's figures. A row is a config of its
//! own, named `FILE:ROW`.

use crate::BUILT_IN;
use crate::exit::{Error, Exit, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A table of runs. `C` is what a row sets: a whole config, whose keys and types are checked, or the bare YAML.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "C: DeserializeOwned")]
pub struct Table<C> {
    /// Its title.
    pub table: String,
    /// The config that rows change.
    pub extends: String,
    /// The paper's GMACCs that are one GMAC: 2 if the paper counts a multiplication and an addition as two.
    #[serde(default = "one")]
    pub gmaccs_per_gmac: f64,
    /// Its rows.
    pub rows: Vec<Row<C>>,
}

/// A row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "C: DeserializeOwned")]
pub struct Row<C> {
    /// Its name.
    pub name: String,
    /// The config that it changes, if another than the table's.
    pub extends: Option<String>,
    /// The keys that it changes.
    pub set: Option<C>,
    /// The paper's figures.
    #[serde(default)]
    pub paper: Figures,
}

/// The paper's figures for a row, as printed there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Figures {
    /// Top-1 accuracy in per cent.
    pub top1: Option<f64>,
    /// GMACCs.
    pub gmaccs: Option<f64>,
    /// Distinct routing paths of the validation images.
    pub paths: Option<u64>,
}

fn one() -> f64 {
    1.0
}

/// Splits `FILE:ROW`.
pub(crate) fn split(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((file, row)) if file.ends_with(".yaml") || file.ends_with(".yml") => (file, Some(row)),
        _ => (name, None),
    }
}

impl<C> Table<C> {
    /// The row of that name; `file` is the table's.
    pub(crate) fn row(&self, file: &str, name: Option<&str>) -> Result<(usize, &Row<C>)> {
        let names: Vec<&str> = self.rows.iter().map(|row| row.name.as_str()).collect();
        let refuse = |what: String| Err(Error::new(Exit::Config, format!("{file}: {what}")));
        let Some(name) = name else {
            let first = names.first().unwrap_or(&"ROW");
            return refuse(format!(
                "a table of configs; name a row, such as {file}:{first}; rows: {}",
                names.join(", ")
            ));
        };
        match names.iter().position(|known| *known == name) {
            Some(index) => Ok((index, &self.rows[index])),
            None => refuse(format!("has no row {name:?}; rows: {}", names.join(", "))),
        }
    }
}

/// Where the shipped config `name` of version 0.1.0 is now, if it has become a row: the row's title and name.
pub(crate) fn moved(
    name: &str,
    parse: impl Fn(&str) -> Option<Table<serde_json::Value>>,
) -> Option<(String, String)> {
    let stem = name.strip_suffix(".yaml")?;
    BUILT_IN.iter().find_map(|(file, text)| {
        let table = parse(text)?;
        let family = file.split('_').next()?;
        let row = table.rows.iter().find(|row| {
            let base = row.extends.as_ref().unwrap_or(&table.extends).trim_end_matches(".yaml");
            // Names were made of the base's and what was changed, such as cifar10_r110_vanilla.
            [base, family].iter().any(|prefix| stem.strip_prefix(prefix) == Some(&format!("_{}", row.name)))
        })?;
        Some((table.table.clone(), format!("{file}:{}", row.name)))
    })
}
