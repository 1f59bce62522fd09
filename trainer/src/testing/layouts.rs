//! A test: no training step of a network for ImageNet converts a memory layout. Every libtorch operation of a step, forward and
//! backward, is observed; each tensor `[N, C, H, W]` that it takes or returns must have its channels innermost.
//!
//! Not observed are the insides of a convolution's kernel, and the operations that replace the fused ones on a GPU. Weights are
//! excluded: oneDNN returns their gradients with channels first, and libtorch copies them. Networks for 32×32 images convert
//! twice: the gradient of a shortcut with stride 2 has channels first.
#![expect(unsafe_code, reason = "libtorch's observers are C++")]

use crate::config::{self, Config, Relaxation};
use crate::data::Normalise;
use crate::dist::{self, Reducer};
use crate::loss::Objective;
use crate::model::{BnMode, Decisions, Net, PathVectors};
use crate::testing::cpp_library;
use crate::train::step::{MicroBatch, TrainStep};
use libloading::Library;
use std::ffi::{CStr, c_char};
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// Runs `work`, and returns the operations of this thread that took or returned another layout, each with that tensor's shape.
fn find_other_layouts<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    static OBSERVER: LazyLock<Library> = LazyLock::new(|| {
        cpp_library::compile("testing/layouts.cpp", &["-DNDEBUG", concat!("-I", env!("LIBTORCH_INCLUDE"))])
    });
    // SAFETY: the signature of testing/layouts.cpp.
    let start = unsafe { OBSERVER.get::<unsafe extern "C" fn() -> u64>(b"layouts_start") }.unwrap();
    // SAFETY: as above.
    let stop =
        unsafe { OBSERVER.get::<unsafe extern "C" fn(u64) -> *const c_char>(b"layouts_stop") }.unwrap();
    // SAFETY: no arguments; no other observation is in progress.
    let handle = unsafe { start() };
    let result = work();
    // SAFETY: ends that observation; a NUL-terminated string, copied at once.
    let found = unsafe { CStr::from_ptr(stop(handle)) };
    (result, found.to_str().expect("text").lines().map(Into::into).collect())
}

/// The other layouts of a step on images of `kind`, up to the update, which works on flat buffers.
fn other_layouts_in_a_step(config: &Config, kind: Kind) -> Vec<String> {
    let world = dist::join().unwrap();
    let stage = &config.stages[0];
    let net = Net::from_config(config, Device::Cpu);
    let reducer = Reducer::new(&net.params, &world, &config.collective);
    let costs = Tensor::from_slice(&net.costs.gate_costs(config.cost.unit));
    let size = i64::from(config.data.image_size);
    let bytes =
        Tensor::randint(256, [4, size, size, config.data.channels.into()], (Kind::Uint8, Device::Cpu));
    let noise = Tensor::randn([4, costs.size()[0]], (Kind::Float, Device::Cpu));
    let batch = MicroBatch {
        images: Normalise::new(&config.data, config.run.precision, Device::Cpu).images(&bytes).to_kind(kind),
        labels: Tensor::from_slice(&[0i64, 1]).into(),
        decisions: Decisions::Relaxed {
            noise: Some(&noise),
            temperature: 1.0,
            relaxation: Relaxation::Gumbel,
        },
    };
    let step = TrainStep {
        world: &world,
        net: &net,
        teacher: None,
        reducer: &reducer,
        costs: &costs,
        objective: Objective::new(config, stage, 0.1),
        path_vectors: PathVectors::new(config),
        routers: stage.routers,
        views: 2,
        scope: config.diversity.scope,
        statistics: BnMode::BATCH,
    };
    let (output, found) = find_other_layouts(|| step.forward_backward(&[batch], false).unwrap());
    assert!(output.grad_norm.double_value(&[]) > 0.0);
    let shape = |tensor: &Tensor| tensor.size().iter().map(|size| format!(" {size}")).collect::<String>();
    let weights: Vec<String> =
        net.params.parameters.iter().map(|parameter| format!(":{}", shape(&parameter.tensor))).collect();
    found.into_iter().filter(|line| !weights.iter().any(|weight| line.ends_with(weight))).collect()
}

#[test]
fn step_keeps_activations_channels_last() {
    let image = Tensor::zeros([2, 4, 4, 3], (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
    let (_, converted) = find_other_layouts(|| image.contiguous());
    assert!(!converted.is_empty(), "the observer reports a conversion");
    for name in ["imagenet_r50.yaml", "imagenet_table7.yaml:r50_static"] {
        let config = config::load(name, &["data.image_size=64".into()]).unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            let found = other_layouts_in_a_step(&config, kind);
            assert!(found.is_empty(), "{name}, {kind:?}:\n{}", found.join("\n"));
        }
    }
}
