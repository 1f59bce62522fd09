//! The shipped configs, built into the programs, so that their bare names work from any folder.

macro_rules! built_in {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("../", $name)))),*] };
}

/// Their names and texts.
pub const BUILT_IN: &[(&str, &str)] = built_in! {
    "cifar100_r110.yaml"
    "cifar100_r110_router_cnn.yaml"
    "cifar100_r110_router_rnn.yaml"
    "cifar100_r110_static.yaml"
    "cifar100_r110_straight_through.yaml"
    "cifar100_r110_vanilla.yaml"
    "cifar100_r32.yaml"
    "cifar100_r32_static.yaml"
    "cifar100_r32_vanilla.yaml"
    "cifar100_r74.yaml"
    "cifar100_r74_static.yaml"
    "cifar100_r74_vanilla.yaml"
    "cifar10_r110.yaml"
    "cifar10_r110_con.yaml"
    "cifar10_r110_div.yaml"
    "cifar10_r110_gamma_0.01.yaml"
    "cifar10_r110_gamma_0.02.yaml"
    "cifar10_r110_gamma_0.04.yaml"
    "cifar10_r110_gamma_0.08.yaml"
    "cifar10_r110_gamma_0.10.yaml"
    "cifar10_r110_margin_0.25.yaml"
    "cifar10_r110_margin_0.50.yaml"
    "cifar10_r110_margin_0.75.yaml"
    "cifar10_r110_margin_1.00.yaml"
    "cifar10_r110_router_cnn.yaml"
    "cifar10_r110_router_rnn.yaml"
    "cifar10_r110_static.yaml"
    "cifar10_r110_straight_through.yaml"
    "cifar10_r110_vanilla.yaml"
    "cifar10_r32.yaml"
    "cifar10_r32_static.yaml"
    "cifar10_r32_vanilla.yaml"
    "cifar10_r74.yaml"
    "cifar10_r74_static.yaml"
    "cifar10_r74_vanilla.yaml"
    "fashion_quick.yaml"
    "fashion_r20.yaml"
    "fashion_r20_budget_40.yaml"
    "fashion_r20_budget_60.yaml"
    "fashion_r20_budget_80.yaml"
    "fashion_r20_con.yaml"
    "fashion_r20_div.yaml"
    "fashion_r20_static.yaml"
    "fashion_r20_vanilla.yaml"
    "imagenet_r101.yaml"
    "imagenet_r101_static.yaml"
    "imagenet_r50.yaml"
    "imagenet_r50_static.yaml"
    "svhn_r110.yaml"
    "svhn_r110_static.yaml"
    "svhn_r110_vanilla.yaml"
};

/// The text of the shipped config with this name.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
