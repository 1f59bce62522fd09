//! The words of codinet-launch's command line: its own options may stand before and after the config, among those of
//! codinet-train.

use clap::{Arg, Command};

/// `words` with the launcher's options first, then `--` and the words for codinet-train. `-np`, as mpirun's users write it, is
/// `-n`. A command line that starts with a subcommand is left as it is otherwise.
pub fn sort_words(words: Vec<String>, mut launcher: Command, mut trainer: Command) -> Vec<String> {
    launcher.build();
    trainer.build();
    let mut words =
        words.into_iter().map(|word| if word == "-np" { "-n".to_owned() } else { word }).peekable();
    let mut own: Vec<String> = words.next().into_iter().collect();
    let is_subcommand = |word: &String| launcher.get_subcommands().any(|command| command.get_name() == word);
    if words.peek().is_some_and(is_subcommand) {
        own.extend(words);
        return own;
    }
    let mut forwarded = Vec::new();
    while let Some(word) = words.next() {
        if word == "--" {
            forwarded.extend(words);
            break;
        }
        let (target, option) = match (find_option(&launcher, &word), find_option(&trainer, &word)) {
            (Some(option), _) => (&mut own, Some(option)),
            (None, Some(option)) => (&mut forwarded, Some(option)),
            // An option of neither program is refused by this one.
            (None, None) if word.starts_with('-') => (&mut own, None),
            (None, None) => (&mut forwarded, None),
        };
        let value_follows = option.is_some_and(|option| value_follows(option, &word));
        target.push(word);
        if value_follows {
            target.extend(words.next());
        }
    }
    if !forwarded.is_empty() {
        own.push("--".into());
        own.extend(forwarded);
    }
    own
}

/// The option of `command` that `word` is, with or without its value.
fn find_option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|option| match word.strip_prefix("--") {
        Some(long) => {
            let name = long.split('=').next();
            let aliases = option.get_all_aliases().unwrap_or_default();
            option.get_long().into_iter().chain(aliases).any(|long| Some(long) == name)
        }
        None => word
            .strip_prefix('-')
            .and_then(|rest| rest.chars().next())
            .is_some_and(|short| option.get_short() == Some(short)),
    })
}

/// Whether the word after `word` is the option's value.
fn value_follows(option: &Arg, word: &str) -> bool {
    let attached = if word.starts_with("--") { word.contains('=') } else { word.len() > 2 };
    option.get_action().takes_values() && !option.is_require_equals_set() && !attached
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start;
    use clap::{Args, CommandFactory};
    use codinet_config::TrainArgs;

    #[test]
    fn options_of_the_launcher_may_stand_after_the_config() {
        let launcher =
            start::Args::augment_args(Command::new("codinet-launch")).subcommand(Command::new("plan"));
        let sorted = |line: &str| {
            let words = format!("codinet-launch {line}").split_whitespace().map(Into::into).collect();
            sort_words(words, launcher.clone(), TrainArgs::command())[1..].join(" ")
        };
        for (line, expected) in [
            ("my.yaml -n 2", "-n 2 -- my.yaml"),
            ("-np 2 my.yaml", "-n 2 -- my.yaml"),
            (
                "my.yaml -n2 --set a=1 --max-restarts=3 --raw",
                "-n2 --max-restarts=3 --raw -- my.yaml --set a=1",
            ),
            ("my.yaml --gpus 4 --resume auto", "--gpus 4 -- my.yaml --resume auto"),
            ("--nproc_per_node=4 my.yaml", "--nproc_per_node=4 -- my.yaml"),
            // A value is no option, and --dry-run takes none that stands apart.
            ("my.yaml --set -n --dry-run -n 2", "-n 2 -- my.yaml --set -n --dry-run"),
            ("my.yaml --hosts a,b --profile 20", "--hosts a,b -- my.yaml --profile 20"),
            // Everything after -- is for codinet-train.
            ("-n 2 -- my.yaml --raw", "-n 2 -- my.yaml --raw"),
            ("my.yaml --unknown -n 2", "--unknown -n 2 -- my.yaml"),
            ("my.yaml --help", "--help -- my.yaml"),
            ("plan my.yaml -np 2 --gpus 8", "plan my.yaml -n 2 --gpus 8"),
            ("help", "help"),
        ] {
            assert_eq!(sorted(line), expected, "{line}");
        }
    }
}
