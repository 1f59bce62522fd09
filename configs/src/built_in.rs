//! The shipped configs, built into the programs, so that their names work from any folder.

macro_rules! built_in {
    ($($folder:literal { $($name:literal)* })*) => {
        &[$($(($name, include_str!(concat!("../", $folder, "/", $name)))),*),*]
    };
}

/// The names and texts of the shipped files.
pub const BUILT_IN: &[(&str, &str)] = built_in! {
    "cifar10" {
        "cifar10_r32.yaml" "cifar10_r74.yaml" "cifar10_r110.yaml"
        "cifar10_table2.yaml" "cifar10_table3.yaml" "cifar10_table5.yaml" "cifar10_table8.yaml" "cifar10_appendix.yaml"
    }
    "cifar100" {
        "cifar100_r32.yaml" "cifar100_r74.yaml" "cifar100_r110.yaml" "cifar100_table5.yaml" "cifar100_appendix.yaml"
    }
    "svhn" { "svhn_r110.yaml" "svhn_table4.yaml" }
    "imagenet" { "imagenet_r50.yaml" "imagenet_r101.yaml" "imagenet_table7.yaml" }
    "fashion" { "fashion_r20.yaml" "fashion_quick.yaml" "fashion_ablation.yaml" "fashion_budgets.yaml" }
};

/// The text of the shipped file with this name.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;

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
