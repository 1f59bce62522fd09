//! No step of a network for ImageNet converts a layout: a test. (Those for 32×32 images do, twice: the gradient of a shortcut
//! that leaves out pixels comes with channels first.) Every operation that libtorch is asked for in a step, forward and
//! backward, is looked at; each tensor `[N, C, H, W]` that it takes or gives must have its channels innermost. Not seen are
//! what a convolution's kernel does inside, and the operations that stand in for the fused ones on a GPU. Weights are left
//! out: oneDNN gives their gradient with channels first, for libtorch to copy.
#![expect(unsafe_code, reason = "libtorch's observers are C++")]

use crate::config::{self, Config};
use crate::data::Normalise;
use crate::dist;
use crate::dist::Reducer;
use crate::loss::Objective;
use crate::model::{Decisions, Net, Statistics};
use crate::testing::cpp_library;
use crate::train::step::{MicroBatch, TrainStep};
use libloading::Library;
use std::ffi::{CStr, c_char};
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// The operations of `work`, on this thread, that took or gave something else, with what and its shape.
fn other_layouts<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    static WATCHER: LazyLock<Library> = LazyLock::new(|| {
        cpp_library::library("testing/layouts.cpp", &["-DNDEBUG", concat!("-I", env!("LIBTORCH_INCLUDE"))])
    });
    // SAFETY: the signatures of testing/layouts.cpp.
    let (watch, found) = unsafe {
        let watch = WATCHER.get::<unsafe extern "C" fn() -> u64>(b"layouts_watch").unwrap();
        (watch, WATCHER.get::<unsafe extern "C" fn(u64) -> *const c_char>(b"layouts_found").unwrap())
    };
    // SAFETY: no arguments; this is the only watch.
    let watching = unsafe { watch() };
    let done = work();
    // SAFETY: ends that watch; a NUL-terminated string, copied at once.
    let found = unsafe { CStr::from_ptr(found(watching)) };
    (done, found.to_str().expect("text").lines().map(Into::into).collect())
}

/// What is found in a step on images of `config`, of `kind`, up to the update, which is of flat buffers.
fn found_in_a_step(config: &Config, kind: Kind) -> Vec<String> {
    let world = dist::join().unwrap();
    let (net, stage) = (Net::of(config, Device::Cpu), &config.stages[0]);
    let reducer = Reducer::new(&net.params, &world, &config.collective);
    let costs = Tensor::from_slice(&net.costs.table(config.cost.unit));
    let (size, channels) = (i64::from(config.data.image_size), i64::from(config.data.channels));
    let bytes = Tensor::randint(256, [4, size, size, channels], (Kind::Uint8, Device::Cpu));
    let noise = Tensor::randn([4, costs.size()[0]], (Kind::Float, Device::Cpu));
    let router = &config.model.router;
    let (temperature, relaxation) = (router.temperature, router.relaxation);
    let batch = MicroBatch {
        images: Normalise::new(&config.data, config.run.precision, Device::Cpu).images(&bytes).to_kind(kind),
        labels: Tensor::from_slice(&[0i64, 1]).into(),
        decisions: Decisions::Relaxed { noise: Some(&noise), temperature, relaxation },
    };
    let step = TrainStep {
        world: &world,
        net: &net,
        reducer: &reducer,
        costs: &costs,
        objective: Objective::new(config, stage, 0.1),
        routers: stage.routers,
        views: 2,
        scope: config.diversity.scope,
        statistics: Statistics::BATCH,
    };
    let (output, found) = other_layouts(|| step.forward_backward(&[batch], false).unwrap());
    assert!(output.grad_norm.double_value(&[]) > 0.0);
    let weight = |tensor: &Tensor| tensor.size().iter().map(|size| format!(" {size}")).collect::<String>();
    let weights: Vec<String> = net.params.trained.iter().map(|one| weight(&one.tensor)).collect();
    found.into_iter().filter(|one| !weights.iter().any(|shape| one.ends_with(&format!(":{shape}")))).collect()
}

#[test]
fn a_step_converts_no_layout() {
    let image = Tensor::zeros([2, 4, 4, 3], (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
    let (_, converted) = other_layouts(|| image.contiguous());
    assert!(!converted.is_empty(), "a conversion is seen");
    for name in ["imagenet_r50.yaml", "imagenet_r50_static.yaml"] {
        let config = config::load(name, &["data.image_size=64".into()]).unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            let found = found_in_a_step(&config, kind);
            assert!(found.is_empty(), "{name}, {kind:?}:\n{}", found.join("\n"));
        }
    }
}
