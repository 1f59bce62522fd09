//! Collectives under a real mpirun, and the gradient of W ranks against that of a single process.
//!
//! Each test runs itself under mpirun: the same function is the parent and, where `CODINET_TEST_OUT` is set, one of its ranks.

use crate::common::{mpirun, succeed};
use codinet_trainer::config::{
    self, Config, CostUnit, Model, Noise, OnDivergence, Optim, OptimizerKind, Relaxation, Routers, Scope,
    Skip, Wire,
};
use codinet_trainer::dist::replicas;
use codinet_trainer::dist::{self, World};
use codinet_trainer::dist::{LocalRank, Reducer};
use codinet_trainer::loss::{self, Budget, Objective};
use codinet_trainer::metrics::{MetricsBuffer, StepMetrics};
use codinet_trainer::model::{BnMode, Decisions, Net, PathVectors, gumbel_noise};
use codinet_trainer::optim::{Ema, Gradient, Sgd, new_optimizer};
use codinet_trainer::sys::error::{Error, Exit};
use codinet_trainer::train::step::{MicroBatch, TrainStep};
use tch::{Device, Kind, Tensor};

/// Runs test `name` of this module under mpirun, where `rank` runs on every rank. Returns rank 0's bytes in the parent, and
/// nothing on a rank.
fn on_ranks(name: &str, ranks: usize, rank: impl Fn(&World) -> Vec<u8>) -> Option<Vec<u8>> {
    if let Ok(out) = std::env::var("CODINET_TEST_OUT") {
        tch::set_num_threads(1);
        let world = dist::join().unwrap();
        let bytes = rank(&world);
        if world.rank() == 0 {
            std::fs::write(out, bytes).unwrap();
        }
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = mpirun(ranks);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", &format!("ranks::{name}"), "--nocapture"]);
    succeed(command.env("CODINET_TEST_OUT", &out));
    Some(std::fs::read(&out).expect("rank 0 wrote its result"))
}

#[test]
fn collectives_return_the_expected_values() {
    let out = on_ranks("collectives_return_the_expected_values", 3, |world| {
        let rank = world.rank();
        assert_eq!(world.ranks(), 3);
        assert_eq!(world.local_rank(), LocalRank { index: rank, count: 3 });

        let sum = Tensor::from_slice(&[rank as f32, 1.0]);
        world.all_reduce_sum(&sum).unwrap();
        assert_eq!(Vec::<f32>::try_from(&sum).unwrap(), [3.0, 3.0]);
        let strided = Tensor::from_slice(&[rank as f64, 9.0, 2.0, 9.0]).view([2, 2]).select(1, 0);
        world.all_reduce_sum(&strided).unwrap();
        assert_eq!(Vec::<f64>::try_from(&strided).unwrap(), [3.0, 6.0]);
        assert!(world.all_reduce_sum(&Tensor::from_slice(&[1i64])).is_err());

        let from_one = Tensor::from_slice(&[rank as i64 * 10]);
        world.broadcast(&from_one, 1).unwrap();
        assert_eq!(Vec::<i64>::try_from(&from_one).unwrap(), [10]);

        let all = world.all_gather(&Tensor::from_slice(&[rank as f32, -1.0])).unwrap();
        assert_eq!(all.size(), [3, 2]);
        assert_eq!(Vec::<f32>::try_from(all.flatten(0, 1)).unwrap(), [0.0, -1.0, 1.0, -1.0, 2.0, -1.0]);

        let texts = dist::all_gather_lists(world, &b"abc"[..rank]).unwrap();
        assert_eq!(texts, [b"".to_vec(), b"a".to_vec(), b"ab".to_vec()]);
        let text = dist::on_rank_zero(world, || Ok(format!("from {rank}"))).unwrap();
        assert_eq!(text, "from 0");
        let objects = dist::all_gather_objects(world, &(rank, "x".repeat(rank))).unwrap();
        assert_eq!(objects, [(0, "".into()), (1, "x".into()), (2, "xx".to_owned())]);
        let error = dist::on_rank_zero::<()>(world, || Err(Error::new(Exit::Disk, "disk full"))).unwrap_err();
        assert_eq!((error.exit, error.agreed, error.message.as_str()), (Exit::Disk, true, "disk full"));

        let result =
            if rank == 0 { Ok(()) } else { Err(Error::new(Exit::Data, format!("shard {rank} is missing"))) };
        let error = dist::agree(world, result).unwrap_err();
        assert_eq!(
            (error.exit, error.agreed, error.message.as_str()),
            (Exit::Data, true, "shard 1 is missing")
        );
        world.barrier().unwrap();
        b"done".to_vec()
    });
    assert!(out.is_none_or(|out| out == b"done"));
}

#[test]
fn diverged_or_mismatched_rank_is_named() {
    let out = on_ranks("diverged_or_mismatched_rank_is_named", 3, |world| {
        let net = Net::new(&Model::default(), 1, 16, 4, 5, Device::Cpu);
        let sgd = Sgd::new(&net.params, &Optim::default());
        let ema = Ema::new(&net.params, 0.9);
        let tensors = [net.params.flat(), &sgd.momentum, &ema.flat];
        let compare = |on_divergence| replicas::compare_tensors(world, &tensors, 7, on_divergence);
        assert!(compare(OnDivergence::Stop).unwrap().is_empty());
        for (tensor, ranks, names) in [
            (tensors[0], &[1, 2][..], "rank 1, 2 "),
            (tensors[1], &[2], "rank 2 "),
            (tensors[2], &[1], "rank 1 "),
        ] {
            if ranks.contains(&world.rank()) {
                let bits = tensor.detach().view_dtype(Kind::Int).get(1234);
                let _ = bits.shallow_clone().bitwise_xor_(1i64 << (2 + world.rank()));
            }
            let error = compare(OnDivergence::Stop).unwrap_err();
            assert!(error.agreed && error.exit == Exit::Communication);
            assert!(error.message.contains("step 7") && error.message.contains(names), "{}", error.message);
            assert_eq!(compare(OnDivergence::Repair).unwrap(), ranks);
            assert!(compare(OnDivergence::Stop).unwrap().is_empty());
        }

        let data = if world.rank() == 2 { "train, 100 samples" } else { "train, 96 samples" };
        let facts = [("version", "0.1".to_owned()), ("data.train", data.to_owned())];
        let error = replicas::refuse_differences(world, &facts).unwrap_err();
        assert!(error.agreed && error.message.starts_with("rank 2 has a different data.train than rank 0: "));
        assert!(error.message.contains("100") && error.message.contains("96"), "{}", error.message);
        b"done".to_vec()
    });
    assert!(out.is_none_or(|out| out == b"done"));
}

/// How ranks divide one step on a fixed global batch of 8 samples × 2 views.
#[derive(Clone)]
struct Sharing {
    routers: Routers,
    /// With frozen routers: `Real` decides with noise, so that images take different paths.
    skip: Skip,
    /// Micro-batches per rank.
    micros: i64,
    scope: Scope,
    /// The config's section `paths`.
    paths: &'static str,
    collective: config::Collective,
}

fn load_config(settings: &[&str]) -> Config {
    let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
    config::load("fashion_r20.yaml", &settings).unwrap()
}

/// The metrics and the gradient of one step on the global batch, as bytes.
fn one_step(world: &World, sharing: Sharing) -> Vec<u8> {
    let Sharing { routers, skip, micros, scope, paths, .. } = sharing;
    let samples = 8i64;
    let views = 2i64;
    let side = 16i64;
    let net = Net::new(&Model::default(), 1, side, 4, 5, Device::Cpu);
    let numbers = samples * views * side * side;
    let images = (Tensor::arange(numbers, (Kind::Float, Device::Cpu)) * 0.7).sin().view([-1, 1, side, side]);
    let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 3, 2, 1, 0]);
    let ranks = world.ranks() as i64;
    let rank = world.rank() as i64;
    let share = samples / ranks / micros;
    let costs = Tensor::from_slice(&net.costs.gate_costs(CostUnit::Blocks));
    let reducer = Reducer::new(&net.params, world, &sharing.collective);
    let config = load_config(&[
        "consistency={weight: 0.7, margin: 0.1}",
        "diversity={weight: 0.9, margin: 1.5}",
        "target_rate={weight: 0.3, rate: 0.4}",
        "run_rate.weight=0.1",
        "optim.label_smoothing=0.1",
        "cost={budget_gmacs: 0.01, penalty: 0.3}",
        paths,
    ]);
    let shares_of_cost = &costs / 9.0;
    let mut objective = Objective::new(&config, &config.stages[0], 0.02);
    objective.budget = Some(Budget { gates: &shares_of_cost, fixed: 0.1, least: 0.3, most: 0.4 });
    let step = TrainStep {
        world,
        net: &net,
        teacher: None,
        reducer: &reducer,
        costs: &costs,
        objective,
        path_vectors: PathVectors::new(&config),
        routers,
        views,
        scope,
        statistics: BnMode::Running,
    };
    // Micro-batch a of rank r has the samples of rank r·A + a.
    let shares: Vec<i64> = (0..micros).map(|a| (rank * micros + a) * share).collect();
    let noises: Vec<Tensor> = shares
        .iter()
        .map(|&first| {
            let indices: Vec<u32> = (first..first + share).map(|sample| sample as u32).collect();
            gumbel_noise(3, 11, &indices, views as usize, 9, Noise::PerView)
        })
        .collect();
    let batch: Vec<MicroBatch> = shares
        .iter()
        .zip(&noises)
        .map(|(&first, noise)| MicroBatch {
            images: images.narrow(0, first * views, share * views),
            labels: labels.narrow(0, first, share).into(),
            decisions: match routers {
                Routers::Train => Decisions::Relaxed {
                    noise: Some(noise),
                    temperature: 1.0,
                    relaxation: Relaxation::Gumbel,
                },
                Routers::Freeze => Decisions::hard((skip == Skip::Real).then_some(noise), skip),
            },
        })
        .collect();
    let output = step.forward_backward(&batch, rank == 1).unwrap();
    let (stop, gathered_rates) = output.gathered.wait();
    assert_eq!(stop, ranks > 1, "one rank's request to stop reaches all");
    let mut buffer = MetricsBuffer::default();
    buffer.push(1, output.metrics);
    let StepMetrics { scalars, rates, hard_rates, .. } = buffer.gather(world).unwrap().remove(0);
    assert!(gathered_rates.iter().zip(&hard_rates).all(|(a, b)| (a - b).abs() < 1e-6));
    let gradient = reducer.flat();
    let mut numbers: Vec<f64> = scalars[1..].iter().map(|(_, value)| *value).collect();
    numbers.extend(rates.iter().chain(&hard_rates));
    assert_eq!(numbers.len(), MEASUREMENTS);
    numbers.extend(Vec::<f64>::try_from(gradient.to_kind(Kind::Double)).unwrap());
    // Every rank must hold the same bits.
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let all = dist::all_gather_lists(world, &bytes).unwrap();
    assert!(all.iter().all(|theirs| *theirs == bytes));
    bytes
}

/// Norms of the gradient's parts.
const GRADIENT_NORMS: usize = 3;
/// How many metrics precede the gradient: those norms, the terms and their sum, top-1, two diagnostics each of two terms, the share
/// of saturated decisions, and two rates of nine gates.
const MEASUREMENTS: usize = GRADIENT_NORMS + 8 + 1 + 1 + 4 + 1 + 2 * 9;

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|eight| f64::from_le_bytes(eight.try_into().unwrap())).collect()
}

/// Compares a step on 1, 2 and 4 ranks with a single process that processes the whole batch.
fn assert_independent_of_world_size(name: &str, sharing: impl Fn(usize) -> Sharing) {
    let single_process = || {
        tch::set_num_threads(1);
        numbers(&one_step(&dist::join().unwrap(), Sharing { micros: 1, ..sharing(1) }))
    };
    for world in [1, 2, 4] {
        let Some(out) = on_ranks(name, world, |world| one_step(world, sharing(world.ranks()))) else {
            return;
        };
        let found = numbers(&out);
        let expected = single_process();
        assert_eq!(found.len(), expected.len());
        // bf16 has eight bits: each rank's share is rounded, and so is the sum.
        let bound = if sharing(1).collective.wire == Wire::Bf16 { 2f64.powi(-6) } else { 2e-5 };
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate().take(MEASUREMENTS) {
            let tolerance = if i < GRADIENT_NORMS { bound } else { 1e-5 };
            assert!(
                (found - expected).abs() <= tolerance * expected.abs().max(1.0),
                "{world} ranks, measurement {i}: {found}, {expected}"
            );
        }
        let found = &found[MEASUREMENTS..];
        let expected = &expected[MEASUREMENTS..];
        let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
        let worst = found.iter().zip(expected).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 1e-3 && worst <= bound * largest, "{world} ranks: off by {worst}, of {largest}");
        let routers_have_gradient = expected.iter().rev().take(1000).any(|x| *x != 0.0);
        let routers_train = sharing(1).routers == Routers::Train;
        assert_eq!(routers_have_gradient, routers_train, "routers are at the end of the flat gradient");
    }
}

/// The defaults of the config.
fn default_sharing(_: usize) -> Sharing {
    let collective = config::Collective::default();
    Sharing {
        routers: Routers::Train,
        skip: Skip::Masked,
        micros: 1,
        scope: Scope::MicroBatch,
        paths: "paths={}",
        collective,
    }
}

#[test]
fn relaxed_gradient_equals_single_process() {
    assert_independent_of_world_size("relaxed_gradient_equals_single_process", default_sharing);
}

#[test]
fn hard_gradient_equals_single_process() {
    let sharing = |ranks| Sharing { routers: Routers::Freeze, ..default_sharing(ranks) };
    assert_independent_of_world_size("hard_gradient_equals_single_process", sharing);
}

/// A rank's bucket of a block that none of its images runs is complete like all others.
#[test]
fn gradient_of_images_that_skip_equals_single_process() {
    let sharing = |ranks| Sharing {
        routers: Routers::Freeze,
        skip: Skip::Real,
        collective: small_buckets(),
        ..default_sharing(ranks)
    };
    assert_independent_of_world_size("gradient_of_images_that_skip_equals_single_process", sharing);
}

/// With `Scope::GlobalBatch` this includes the diversity loss.
#[test]
fn accumulated_gradient_equals_whole_batch() {
    let sharing = |ranks: usize| Sharing {
        micros: if ranks == 4 { 2 } else { 4 / ranks as i64 },
        scope: Scope::GlobalBatch,
        ..default_sharing(ranks)
    };
    assert_independent_of_world_size("accumulated_gradient_equals_whole_batch", sharing);
}

#[test]
fn accumulated_gradient_of_probabilities_equals_whole_batch() {
    let sharing = |ranks: usize| Sharing {
        micros: if ranks == 4 { 2 } else { 4 / ranks as i64 },
        scope: Scope::GlobalBatch,
        paths: "paths={values: probability, outputs: both}",
        ..default_sharing(ranks)
    };
    assert_independent_of_world_size("accumulated_gradient_of_probabilities_equals_whole_batch", sharing);
}

/// Many small buckets, reduced during backward.
fn small_buckets() -> config::Collective {
    config::Collective { bucket_mb: 0.01, first_bucket_mb: 1e-6, ..config::Collective::default() }
}

#[test]
fn bucketed_gradient_equals_single_process() {
    let sharing = |ranks| Sharing { collective: small_buckets(), ..default_sharing(ranks) };
    assert_independent_of_world_size("bucketed_gradient_equals_single_process", sharing);
}

#[test]
fn buckets_without_gradients_do_not_block() {
    let sharing =
        |ranks| Sharing { routers: Routers::Freeze, collective: small_buckets(), ..default_sharing(ranks) };
    assert_independent_of_world_size("buckets_without_gradients_do_not_block", sharing);
}

#[test]
fn gradient_reduced_after_backward_equals_single_process() {
    let collective = config::Collective { overlap: false, ..small_buckets() };
    let sharing = |ranks| Sharing { collective: collective.clone(), ..default_sharing(ranks) };
    assert_independent_of_world_size("gradient_reduced_after_backward_equals_single_process", sharing);
}

/// Eq. 9 over the centres of all ranks, against a single process that sums pair by pair.
#[test]
fn diversity_loss_and_gradient_equal_single_process() {
    let samples = 24i64;
    let n = 9i64;
    let margin = 1.2;
    let all = (Tensor::arange(samples * n, (Kind::Double, Device::Cpu)) * 1.7).sin().view([samples, n]) * 0.5;
    all.get(5).copy_(&all.get(11)); // two samples on one path
    let check = |world: &World| {
        let own = samples / world.ranks() as i64;
        let offset = world.rank() as i64 * own;
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::Double, 1e-12)] {
            let centres = all.narrow(0, offset, own).to_kind(kind).set_requires_grad(true);
            let peers = world.all_gather(&centres).unwrap().flatten(0, 1);
            let loss = loss::diversity(&centres, &peers, offset, margin);
            let value = loss.detach();
            world.all_reduce_sum(&value).unwrap();
            (loss / world.ranks() as f64).backward(); // so that the gradients' sum over ranks is their mean
            let gradient = world.all_gather(&centres.grad()).unwrap().flatten(0, 1).to_kind(Kind::Double);
            let (expected, expected_gradient) = pair_by_pair(&all, margin);
            let mean = f64::try_from(&value).unwrap() / world.ranks() as f64;
            let error = (mean - expected).abs();
            assert!(expected > 0.1 && error < tolerance * expected, "off by {error} of {expected}");
            let error = f64::try_from((gradient - &expected_gradient).abs().max()).unwrap();
            let largest = f64::try_from(expected_gradient.abs().max()).unwrap();
            assert!(error < tolerance * largest, "gradient off by {error} of {largest}");
        }
        b"done".to_vec()
    };
    for ranks in [1, 2, 3, 4, 8] {
        let Some(out) = on_ranks("diversity_loss_and_gradient_equal_single_process", ranks, check) else {
            return;
        };
        assert_eq!(out, b"done");
    }
}

/// Eq. 9 and its gradient, term by term.
fn pair_by_pair(centres: &Tensor, margin: f64) -> (f64, Tensor) {
    let rows = Vec::<Vec<f64>>::try_from(centres).unwrap();
    let pairs = (rows.len() * (rows.len() - 1)) as f64;
    let mut value = 0.0;
    let mut gradient = vec![vec![0.0; rows[0].len()]; rows.len()];
    for (i, a) in rows.iter().enumerate() {
        for b in rows.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, b)| b) {
            let distance = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            let hinge = (margin - distance).max(0.0);
            value += hinge.powi(2) / pairs;
            if distance > 0.0 {
                for (k, (a, b)) in a.iter().zip(b).enumerate() {
                    gradient[i][k] -= 4.0 * hinge * (a - b) / distance / pairs; // each pair counts from both ends
                }
            }
        }
    }
    (value, Tensor::from_slice2(&gradient))
}

/// With batch norm's statistics over all ranks, any number of ranks takes the same 20 steps.
fn assert_synced_training_is_independent_of_world_size(
    name: &str,
    routers: Routers,
    skip: Skip,
    optim: Optim,
    lr: f64,
) {
    let train = |world: &World| -> Vec<u8> {
        let samples = 12i64;
        let views = 2i64;
        let side = 16i64;
        let net = Net::new(&Model::default(), 1, side, 4, 5, Device::Cpu);
        let reducer = Reducer::new(&net.params, world, &config::Collective::default());
        let over_ranks = world.differentiable_mean();
        let mut optimizer = new_optimizer(&net.params, &optim);
        let costs = Tensor::from_slice(&net.costs.gate_costs(CostUnit::Blocks));
        let share = samples / world.ranks() as i64;
        let rank = world.rank() as i64;
        let config =
            load_config(&["consistency={weight: 0.2, margin: 0}", "diversity={weight: 0.2, margin: 0.5}"]);
        let mut buffer = MetricsBuffer::default();
        for step in 0..20i64 {
            let numbers = samples * views * side * side;
            let all = (Tensor::arange(numbers, (Kind::Float, Device::Cpu)) * 0.7 + step as f64).sin();
            let all = all.view([-1, 1, side, side]);
            let labels = (Tensor::arange(samples, (Kind::Int64, Device::Cpu)) + step).remainder(4);
            let indices: Vec<u32> = (rank * share..(rank + 1) * share).map(|sample| sample as u32).collect();
            let noise = gumbel_noise(3, step as u64, &indices, views as usize, 9, Noise::PerView);
            let batch = MicroBatch {
                images: all.narrow(0, rank * share * views, share * views),
                labels: labels.narrow(0, rank * share, share).into(),
                decisions: match routers {
                    Routers::Train => Decisions::Relaxed {
                        noise: Some(&noise),
                        temperature: 1.0,
                        relaxation: Relaxation::Gumbel,
                    },
                    Routers::Freeze => {
                        // No image runs the last gate's block, and none of the first quarter, rank 0 of 4, that of another.
                        let _ = noise.select(1, 8).fill_(-1e9);
                        let first_quarter = indices.iter().filter(|&&sample| sample < 3).count() as i64;
                        let _ = noise.select(1, 4).narrow(0, 0, first_quarter * views).fill_(-1e9);
                        Decisions::hard(Some(&noise), skip)
                    }
                },
            };
            let objective = Objective::new(&config, &config.stages[0], 0.01);
            let statistics = BnMode::Batch { update_running: true, sync: Some(&over_ranks) };
            let step = TrainStep {
                world,
                net: &net,
                teacher: None,
                reducer: &reducer,
                costs: &costs,
                objective,
                path_vectors: PathVectors::new(&config),
                routers,
                views,
                scope: Scope::MicroBatch,
                statistics,
            };
            let output = step.forward_backward(&[batch], false).unwrap();
            let gradient = Gradient { flat: reducer.flat(), norm: &output.grad_norm, finite: &output.finite };
            optimizer.step(world, &net.params, gradient, lr, routers).unwrap();
            buffer.push(0, output.metrics);
        }
        let tensors = [net.params.flat(), optimizer.state()];
        assert!(replicas::compare_tensors(world, &tensors, 20, OnDivergence::Stop).unwrap().is_empty());
        let steps = buffer.gather(world).unwrap();
        let mut losses: Vec<f64> = steps.iter().map(|metrics| metrics.get("loss")).collect();
        losses.extend(Vec::<f64>::try_from(net.params.flat_buffers().to_kind(Kind::Double)).unwrap());
        losses.iter().flat_map(|loss: &f64| loss.to_le_bytes()).collect()
    };
    let mut expected = Vec::new();
    for ranks in [1, 2, 4] {
        let Some(out) = on_ranks(name, ranks, train) else { return };
        let found = numbers(&out);
        if ranks == 1 {
            assert!((found[0] - found[19]).abs() > 0.01, "the loss changes: {:?}", &found[..20]);
            expected = found;
            continue;
        }
        // The losses, then the running statistics.
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let bound = if i < 20 { 1e-4 * expected.abs() } else { 1e-3 * expected.abs().max(0.1) };
            assert!((found - expected).abs() <= bound, "{ranks} ranks, {i}: {found}, {expected}");
        }
    }
}

#[test]
fn training_with_sync_batch_norm_is_independent_of_world_size() {
    let name = "training_with_sync_batch_norm_is_independent_of_world_size";
    assert_synced_training_is_independent_of_world_size(
        name,
        Routers::Train,
        Skip::Masked,
        Optim::default(),
        1e-4,
    );
}

/// ε is so large that Adam's update hardly depends on the rounding of gradients near 0.
fn with_large_epsilon(optimizer: OptimizerKind) -> Optim {
    Optim { optimizer, weight_decay: 0.02, eps: Some(0.1), ..Optim::default() }
}

#[test]
fn training_with_adamw_is_independent_of_world_size() {
    let name = "training_with_adamw_is_independent_of_world_size";
    let optim = with_large_epsilon(OptimizerKind::AdamW);
    assert_synced_training_is_independent_of_world_size(name, Routers::Train, Skip::Masked, optim, 2e-5);
}

#[test]
fn training_with_lamb_is_independent_of_world_size() {
    let name = "training_with_lamb_is_independent_of_world_size";
    let optim = with_large_epsilon(OptimizerKind::Lamb);
    assert_synced_training_is_independent_of_world_size(name, Routers::Train, Skip::Masked, optim, 2e-5);
}

/// Also where a rank has no image that runs a block.
#[test]
fn skipping_with_sync_batch_norm_is_independent_of_world_size() {
    let name = "skipping_with_sync_batch_norm_is_independent_of_world_size";
    assert_synced_training_is_independent_of_world_size(
        name,
        Routers::Freeze,
        Skip::Real,
        Optim::default(),
        1e-4,
    );
}

#[test]
fn bf16_gradient_matches_within_rounding() {
    let collective = config::Collective { wire: Wire::Bf16, ..small_buckets() };
    let sharing = |ranks| Sharing { collective: collective.clone(), ..default_sharing(ranks) };
    assert_independent_of_world_size("bf16_gradient_matches_within_rounding", sharing);
}

/// Each rank rounds what it sends. The sum is fp32 and rounded once.
#[test]
fn bf16_sum_is_rounded_once() {
    let out = on_ranks("bf16_sum_is_rounded_once", 3, |world| {
        let values = (Tensor::arange(1000, (Kind::Float, Device::Cpu)) * 0.3 + world.rank() as f64).sin();
        let sum = values.to_kind(Kind::BFloat16);
        world.all_reduce_sum(&sum).unwrap();
        let all = world.all_gather(&values.to_kind(Kind::BFloat16).to_kind(Kind::Float)).unwrap();
        let expected = all.sum_dim_intlist([0].as_slice(), false, None).to_kind(Kind::BFloat16);
        assert!(sum.equal(&expected));
        b"done".to_vec()
    });
    assert!(out.is_none_or(|out| out == b"done"));
}
