use super::*;

const CPU_FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The GPU's kernels, emulated on a CPU.
fn emulated(h: &Tensor, norm: &NormTensors, epilogue: Epilogue) -> (Tensor, Tensor) {
    fused_norm_on_gpu(emulate::kernels(), h, norm, epilogue)
}

type Operation = fn(&Tensor, &NormTensors, Epilogue) -> (Tensor, Tensor);

/// The kernels for a CPU, and those for a GPU.
const BOTH: [Operation; 2] = [fused_norm, emulated];

/// γ = 1, β = 0, for 16 channels.
fn identity<'a>(ones: &'a Tensor, zeros: &'a Tensor) -> NormTensors<'a> {
    NormTensors { weight: ones, bias: zeros, running: None, momentum: 0.1, epsilon: 1e-5 }
}

#[test]
fn gpu_kernels_equal_libtorch_in_values_and_gradients() {
    check::check_fused_norm(emulated, Device::Cpu, &check::SHAPES, TOLERANCE).unwrap();
}

/// They add a sample's pixels one after another in f32, and lose more if there are many: v's gradient, whose terms cancel most,
/// is off by 4e-6.
#[test]
fn cpu_kernels_equal_libtorch_in_values_and_gradients() {
    let (few_pixels, many_pixels) = check::SHAPES.split_at(1);
    check::check_fused_norm(fused_norm, Device::Cpu, few_pixels, 2e-6).unwrap();
    check::check_fused_norm(fused_norm, Device::Cpu, many_pixels, 1e-5).unwrap();
}

#[test]
fn normalised_pixels_equal_libtorchs() {
    let normalise = |bytes: &_, mean: &_, std: &_, kind| {
        gpu::normalise_pixels(emulate::kernels(), bytes, mean, std, kind)
    };
    check::check_pixels(normalise, Device::Cpu).unwrap();
}

#[test]
fn results_are_bit_identical_for_any_number_of_threads() {
    let inputs = check::inputs([3, 32, 5, 7], Device::Cpu);
    let results = [1, 3].map(|threads| {
        tch::set_num_threads(threads);
        check::evaluate(fused_norm, EpilogueKind::BlendWithSkip, &inputs, Kind::Float, false)
    });
    assert!(results[0].iter().zip(&results[1]).all(|(one, three)| one.equal(three)));
}

/// The emulator runs a GPU's threads and blocks in another order each time.
#[test]
fn results_are_bit_identical_for_any_order_of_execution() {
    let inputs = check::inputs([3, 48, 40, 41], Device::Cpu);
    for kind in [Kind::Float, Kind::BFloat16] {
        let results =
            [(); 3].map(|()| check::evaluate(emulated, EpilogueKind::BlendWithSkip, &inputs, kind, false));
        for result in &results[1..] {
            assert!(result.iter().zip(&results[0]).all(|(one, other)| one.equal(other)));
        }
    }
}

#[test]
fn mean_is_computed_only_where_it_is_needed() {
    let ones = Tensor::ones([16], CPU_FLOAT);
    let zeros = Tensor::zeros([16], CPU_FLOAT);
    let norm = identity(&ones, &zeros);
    for kind in [Kind::Float, Kind::BFloat16] {
        let [with, without] = [true, false].map(|pool| {
            let h = Tensor::arange(2 * 16 * 63, (Kind::Float, Device::Cpu)).sin().view([2, 16, 7, 9]);
            let h = channels_last(&h).to_kind(kind).set_requires_grad(true);
            let (out, mean) = emulated(&h, &norm, Epilogue::Relu { pool });
            assert_eq!(mean.numel() > 0, pool);
            out.square().sum(Kind::Float).backward();
            (out, h.grad())
        });
        assert!(with.0.equal(&without.0) && with.1.equal(&without.1));
    }
}

/// So that the step is skipped.
#[test]
fn nan_passes_through_relu() {
    let h = channels_last(&Tensor::randn([2, 16, 3, 3], CPU_FLOAT));
    let _ = h.get(1).get(4).fill_(f64::NAN);
    let ones = Tensor::ones([16], CPU_FLOAT);
    let zeros = Tensor::zeros([16], CPU_FLOAT);
    for operation in BOTH {
        for h in [h.shallow_clone(), h.to_kind(Kind::BFloat16)] {
            let (out, mean) = operation(&h, &identity(&ones, &zeros), Epilogue::Relu { pool: true });
            for channel in [out.select(1, 4), mean.select(1, 4)] {
                assert_eq!(channel.isnan().all().int64_value(&[]), 1);
            }
            assert_eq!(out.isnan().sum(Kind::Int64).int64_value(&[]), 2 * 9);
        }
    }
}

/// One of the two outputs is unused, or no gradient is needed at all.
#[test]
fn gradients_of_outputs_may_be_undefined() {
    let ones = Tensor::ones([16], CPU_FLOAT);
    let zeros = Tensor::zeros([16], CPU_FLOAT);
    let norm = identity(&ones, &zeros);
    let h = channels_last(&Tensor::randn([2, 16, 3, 3], CPU_FLOAT));
    let gradients = |operation: &dyn Fn(&Tensor, &NormTensors, Epilogue) -> (Tensor, Tensor)| {
        let both = [h.copy(), h.copy()].map(|h| h.set_requires_grad(true));
        operation(&both[0], &norm, Epilogue::Relu { pool: true }).0.square().sum(Kind::Float).backward();
        operation(&both[1], &norm, Epilogue::Relu { pool: true }).1.square().sum(Kind::Float).backward();
        let without_grad = tch::no_grad(|| operation(&both[0], &norm, Epilogue::Relu { pool: true }).0);
        assert!(!without_grad.requires_grad());
        both.map(|h| h.grad())
    };
    let reference = gradients(&check::reference);
    for operation in BOTH {
        for (ours, theirs) in gradients(&operation).iter().zip(&reference) {
            assert!(ours.norm().double_value(&[]) > 0.0 && ours.allclose(theirs, 1e-4, 1e-5, false));
        }
    }
}

#[test]
fn operands_may_start_at_unaligned_addresses() {
    let ones = Tensor::ones([16], CPU_FLOAT);
    let zeros = Tensor::zeros([16], CPU_FLOAT);
    let norm = identity(&ones, &zeros);
    let memory = Tensor::randn([2 * 3 * 3 * 16 + 1], CPU_FLOAT);
    let h = memory.narrow(0, 1, 2 * 3 * 3 * 16).view([2, 3, 3, 16]).permute([0, 3, 1, 2]);
    let [ours, theirs] =
        [emulated, check::reference].map(|operation| operation(&h, &norm, Epilogue::Relu { pool: true }).0);
    assert!(ours.allclose(&theirs, 1e-5, 1e-5, false));
}
