//! The keys that are paths: `~` is expanded, and what no path of this machine can mean is refused.

use crate::Config;
use std::path::Path;

/// Stores that shards may be in, with the cargo feature `remote`.
const STORES: [&str; 4] = ["s3", "gs", "https", "http"];

/// A path in a config.
struct ConfigPath<'a> {
    key: String,
    path: &'a mut String,
    /// Whether it may be the URL of a store.
    in_store: bool,
}

impl Config {
    fn paths(&mut self) -> Vec<ConfigPath<'_>> {
        let Self { run, data, model, distill, .. } = self;
        let cache = data.cache.as_mut().map(|cache| &mut cache.folder);
        let local = [
            ("run.dir", run.dir.as_mut()),
            ("data.cache.folder", cache),
            ("model.init_from", model.init_from.as_mut()),
            ("distill.from", distill.from.as_mut()),
        ];
        let local = local
            .into_iter()
            .filter_map(|(key, path)| Some(ConfigPath { key: key.into(), path: path?, in_store: false }));
        let shards = data.train.paths_mut().into_iter().chain([("data.val".into(), &mut data.val)]);
        let shards = shards.map(|(key, path)| ConfigPath { key, path, in_store: true });
        local.chain(shards).collect()
    }

    /// Replaces a `~` at the start of each path by the home folder.
    pub(crate) fn expand_home(&mut self) {
        let Some(home) = std::env::home_dir() else { return };
        for ConfigPath { path, .. } in self.paths() {
            if let Some(rest) = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'))
            {
                *path = format!("{}{rest}", home.display());
            }
        }
    }

    /// The paths that are refused: the key, and why.
    pub(crate) fn refused_paths(&self) -> Vec<(String, String)> {
        let mut config = self.clone();
        let refused = config
            .paths()
            .into_iter()
            .filter_map(|ConfigPath { key, path, in_store }| Some((key, refusal(path, in_store)?)));
        refused.collect()
    }
}

/// Why `path` cannot be used; none if it can.
fn refusal(path: &str, in_store: bool) -> Option<String> {
    if let Some((scheme, rest)) = path.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
        return match scheme {
            "file" => {
                Some(format!("is {path}; write the path only: {}", Path::new("/").join(rest).display()))
            }
            _ if !in_store => {
                Some(format!("is {path}; it takes a folder or file of this machine, not a store's"))
            }
            _ if STORES.contains(&scheme) => None,
            _ => Some(format!(
                "is {path}; the stores are {}",
                STORES.map(|name| format!("{name}://")).join(", ")
            )),
        };
    }
    let variable = path
        .split_once('$')
        .map(|(_, rest)| rest)
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '{'))?;
    let name: String = variable
        .trim_start_matches('{')
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    Some(format!(
        "is {path}; variables are not expanded in a config: write ${name}'s value, or let the shell expand it (--set KEY=\"${name}/…\")"
    ))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_expanded_and_foreign_paths_are_refused() {
        let mut config = Config::default();
        config.run.dir = Some("~/runs/x".into());
        config.data.train = "~".into();
        config.model.init_from = Some("a/~/b".into());
        config.expand_home();
        let home = std::env::home_dir().unwrap().display().to_string();
        assert_eq!(config.run.dir, Some(format!("{home}/runs/x")));
        assert_eq!(config.data.train.to_string(), home);
        assert_eq!(config.model.init_from.as_deref(), Some("a/~/b"));

        for (path, in_store, part) in [
            ("$SCRATCH/x", true, Some("$SCRATCH's value")),
            ("a/${HOME}x", false, Some("$HOME's value")),
            ("s3://b/x", false, Some("of this machine")),
            ("hdfs://b/x", true, Some("the stores are s3://")),
            ("file:///a/b", true, Some("the path only: /a/b")),
            ("s3://b/x-{000000..000012}.tar", true, None),
            ("a$/b", false, None),
            ("a $1", false, None),
            ("C://x y", false, Some("of this machine")),
            ("a/b c://x", false, None),
        ] {
            let refused = refusal(path, in_store);
            assert_eq!(refused.is_some(), part.is_some(), "{path}: {refused:?}");
            assert!(part.is_none_or(|part| refused.unwrap().contains(part)), "{path}");
        }
    }
}
