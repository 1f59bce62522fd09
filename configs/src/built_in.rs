//! The shipped configs, built into the programs, so that their names work from any folder.

macro_rules! built_in {
    ($($folder:literal { $($name:literal)* })*) => {
        &[$($(($name, include_str!(concat!("../", $folder, "/", $name)))),*),*]
    };
}

/// The names and texts of the shipped files.
pub const BUILT_IN: &[(&str, &str)] = built_in! {
    "cifar10" {
        "cifar10_r32.yaml" "cifar10_r74.yaml" "cifar10_r110.yaml" "cifar10_authors.yaml" "cifar10_best.yaml" "cifar10_recipes.yaml"
        "cifar10_table2.yaml" "cifar10_table3.yaml" "cifar10_table5.yaml" "cifar10_table8.yaml" "cifar10_appendix.yaml"
    }
    "cifar100" {
        "cifar100_r32.yaml" "cifar100_r74.yaml" "cifar100_r110.yaml" "cifar100_table5.yaml" "cifar100_appendix.yaml"
    }
    "svhn" { "svhn_r110.yaml" "svhn_table4.yaml" }
    "imagenet" {
        "imagenet_r50.yaml" "imagenet_r101.yaml" "imagenet_table7.yaml" "imagenet_rsb_a3.yaml" "imagenet_codinet_a3.yaml"
        "imagenet_ffcv_16.yaml" "imagenet_ffcv_40.yaml" "imagenet_ffcv_88.yaml"
    }
    "fashion" { "fashion_r20.yaml" "fashion_quick.yaml" "fashion_ablation.yaml" "fashion_budgets.yaml" "fashion_recipes.yaml" }
};

/// The text of the shipped file with this name.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// A line for each shipped file: its name, and the start of its first comment, up to a full stop or semicolon.
pub fn list() -> String {
    let width = BUILT_IN.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let lines = BUILT_IN.iter().map(|(name, text)| format!("{name:width$}{}\n", subject(text)));
    let lines: String = lines.collect();
    format!("{lines}\nA row of a table is a config, too: FILE:ROW. codinet-launch table FILE lists the rows.")
}

/// The comment that a file starts with, up to a full stop or semicolon.
fn subject(text: &str) -> String {
    let comment = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    let comment = comment.collect::<Vec<_>>().join(" ");
    let end = [". ", "; "].iter().filter_map(|mark| comment.find(mark)).min().unwrap_or(comment.len());
    comment[..end].trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;

    #[test]
    fn list_has_a_line_with_a_sentence_for_each_file() {
        let list = list();
        for (name, _) in BUILT_IN {
            let line = list.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            assert!(line.starts_with("  ") && line.trim().split(' ').count() >= 3, "{name}: {line}");
            assert!(line.chars().count() < 130, "{name}: {line}");
        }
        assert_eq!(subject("# One: a\n# b; and. Two.\na: 1\n# c"), "One: a b");
    }

    #[test]
    fn every_file_in_the_folders_is_built_in() {
        let folders = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap().flatten().map(|entry| entry.path());
        let files =
            folders.filter(|path| path.is_dir()).flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
        let names = files.map(|file| file.file_name().to_str().unwrap().to_owned());
        let names: BTreeSet<String> = names.filter(|name| name.ends_with(".yaml")).collect();
        assert_eq!(names, BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect());
    }
}
