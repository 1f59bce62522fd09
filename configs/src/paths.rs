//! The keys that are paths: `~` is expanded, and what no path of this machine can mean is refused.

use crate::Config;
use std::path::Path;

/// Stores that shards may be in, with the cargo feature `remote`.
const SHARD_STORES: &[&str] = &["s3", "gs", "https", "http"];
/// Stores that a run may be copied to.
const COPY_STORES: &[&str] = &["s3", "gs"];

/// A path in a config.
struct ConfigPath<'a> {
    key: String,
    path: &'a mut String,
    /// The schemes of stores that it may be the URL of.
    stores: &'static [&'static str],
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
            .filter_map(|(key, path)| Some(ConfigPath { key: key.into(), path: path?, stores: &[] }));
        let shards = data.train.paths_mut().into_iter().chain([("data.val".into(), &mut data.val)]);
        let shards = shards.map(|(key, path)| ConfigPath { key, path, stores: SHARD_STORES });
        let copies = run.copy_to.as_mut();
        let copies = copies.map(|path| ConfigPath { key: "run.copy_to".into(), path, stores: COPY_STORES });
        local.chain(shards).chain(copies).collect()
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
            .filter_map(|ConfigPath { key, path, stores }| Some((key, refusal(path, stores)?)));
        refused.collect()
    }
}

/// Why `path` cannot be used; none if it can.
fn refusal(path: &str, stores: &[&str]) -> Option<String> {
    if let Some((scheme, rest)) = path.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
        return match scheme {
            "file" => {
                Some(format!("is {path}; write the path only: {}", Path::new("/").join(rest).display()))
            }
            _ if stores.is_empty() => {
                Some(format!("is {path}; it takes a folder or file of this machine, not a store's"))
            }
            _ if stores.contains(&scheme) => None,
            _ => {
                let stores: Vec<String> = stores.iter().map(|name| format!("{name}://")).collect();
                Some(format!("is {path}; the stores are {}", stores.join(", ")))
            }
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

        for (path, stores, part) in [
            ("https://b/x", COPY_STORES, Some("the stores are s3://, gs://")),
            ("$SCRATCH/x", SHARD_STORES, Some("$SCRATCH's value")),
            ("a/${HOME}x", &[], Some("$HOME's value")),
            ("s3://b/x", &[], Some("of this machine")),
            ("hdfs://b/x", SHARD_STORES, Some("the stores are s3://")),
            ("file:///a/b", SHARD_STORES, Some("the path only: /a/b")),
            ("s3://b/x-{000000..000012}.tar", SHARD_STORES, None),
            ("a$/b", &[], None),
            ("a $1", &[], None),
            ("C://x y", &[], Some("of this machine")),
            ("a/b c://x", &[], None),
        ] {
            let refused = refusal(path, stores);
            assert_eq!(refused.is_some(), part.is_some(), "{path}: {refused:?}");
            assert!(part.is_none_or(|part| refused.unwrap().contains(part)), "{path}");
        }
    }
}
