//! Ranks that meet: collectives under a real mpirun, and the gradient of W ranks against one process's.
//!
//! Each test starts mpirun on itself: the same function is the parent and, where `CODINET_TEST_OUT` is set,
//! one of its ranks.

mod common;

use codinet_trainer::collective::{self, Collective};
use codinet_trainer::config::{CostUnit, Model, OnDivergence, Optim, Relaxation, Routers, Scope};
use codinet_trainer::error::{Error, Exit};
use codinet_trainer::loss::Weights;
use codinet_trainer::model::{Decisions, Net, Statistics, gumbel_noise};
use codinet_trainer::optim::Sgd;
use codinet_trainer::replicas;
use codinet_trainer::step::{Measured, MicroBatch, Step};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Runs `rank` on every rank of an mpirun of test `name`; rank 0's bytes come back.
fn on_ranks(name: &str, ranks: usize, rank: impl Fn(&dyn Collective) -> Vec<u8>) -> Option<Vec<u8>> {
    if let Ok(out) = std::env::var("CODINET_TEST_OUT") {
        tch::set_num_threads(1);
        let world = collective::join().unwrap();
        let bytes = rank(world.as_ref());
        if world.rank() == 0 {
            std::fs::write(out, bytes).unwrap();
        }
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = common::mpirun(ranks);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    common::succeed(command.env("CODINET_TEST_OUT", &out));
    Some(read(&out))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("rank 0 wrote its result")
}

#[test]
fn collectives_do_what_they_say() {
    let out = on_ranks("collectives_do_what_they_say", 3, |world| {
        let (rank, ranks) = (world.rank(), world.world());
        assert_eq!((ranks, world.local()), (3, (rank, 3)));

        let sum = Tensor::from_slice(&[rank as f32, 1.0]);
        world.all_reduce_sum(&sum).unwrap();
        assert_eq!(Vec::<f32>::try_from(&sum).unwrap(), [3.0, 3.0]);
        let strided = Tensor::from_slice(&[rank as f64, 9.0, 2.0, 9.0]).view([2, 2]).select(1, 0);
        collective::all_reduce_mean(world, &strided).unwrap();
        assert_eq!(Vec::<f64>::try_from(&strided).unwrap(), [1.0, 2.0]);
        assert!(world.all_reduce_sum(&Tensor::from_slice(&[1i64])).is_err());

        let from_one = Tensor::from_slice(&[rank as i64 * 10]);
        world.broadcast(&from_one, 1).unwrap();
        assert_eq!(Vec::<i64>::try_from(&from_one).unwrap(), [10]);

        let all = world.all_gather(&Tensor::from_slice(&[rank as f32, -1.0])).unwrap();
        assert_eq!(all.size(), [3, 2]);
        assert_eq!(Vec::<f32>::try_from(all.flatten(0, 1)).unwrap(), [0.0, -1.0, 1.0, -1.0, 2.0, -1.0]);

        let texts = collective::all_gather_bytes(world, &b"abc"[..rank]).unwrap();
        assert_eq!(texts, [b"".to_vec(), b"a".to_vec(), b"ab".to_vec()]);
        let text = collective::broadcast_text(world, &format!("from {rank}")).unwrap();
        assert_eq!(text, "from 0");

        let mine =
            if rank == 0 { Ok(()) } else { Err(Error::new(Exit::Data, format!("shard {rank} is missing"))) };
        let error = collective::agree(world, mine).unwrap_err();
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
fn a_rank_that_leaves_the_others_is_named_or_mended() {
    let out = on_ranks("a_rank_that_leaves_the_others_is_named_or_mended", 3, |world| {
        let net = Net::new(&Model::default(), 1, 16, 4, 5, Device::Cpu);
        let sgd = Sgd::new(&net.params, &Optim::default());
        let compare = |on_divergence| replicas::compare(world, &net.params, &sgd, 7, on_divergence);
        assert!(compare(OnDivergence::Stop).unwrap().is_empty());
        for (rank, tensor) in [(1, net.params.flat()), (2, &sgd.momentum)] {
            if world.rank() == rank {
                let bits = tensor.detach().view_dtype(Kind::Int).get(1234);
                let _ = bits.shallow_clone().bitwise_xor_(1i64 << 3);
            }
        }
        let error = compare(OnDivergence::Stop).unwrap_err();
        assert!(error.agreed && error.exit == Exit::Communication);
        assert!(error.message.contains("step 7") && error.message.contains("rank 1, 2"), "{}", error.message);
        assert_eq!(compare(OnDivergence::Repair).unwrap(), [1, 2]);
        assert!(compare(OnDivergence::Stop).unwrap().is_empty());

        let data = if world.rank() == 2 { "train, 100 samples" } else { "train, 96 samples" };
        let facts = [("version", "0.1".to_owned()), ("data.train", data.to_owned())];
        let error = replicas::refuse_differences(world, &facts).unwrap_err();
        assert!(error.agreed && error.message.starts_with("rank 2 has another data.train than rank 0: "));
        assert!(error.message.contains("100") && error.message.contains("96"), "{}", error.message);
        b"done".to_vec()
    });
    assert!(out.is_none_or(|out| out == b"done"));
}

/// How one step shares out a fixed global batch of 8 samples × 2 views.
#[derive(Clone, Copy)]
struct Sharing {
    routers: Routers,
    /// Micro-batches a rank.
    micros: i64,
    scope: Scope,
}

/// The gradient and the measurements of one step on the global batch.
fn one_step(world: &dyn Collective, sharing: Sharing) -> Vec<u8> {
    let Sharing { routers, micros, scope } = sharing;
    let (samples, views, side) = (8i64, 2i64, 16i64);
    let net = Net::new(&Model::default(), 1, side, 4, 5, Device::Cpu);
    let numbers = samples * views * side * side;
    let images = (Tensor::arange(numbers, (Kind::Float, Device::Cpu)) * 0.7).sin().view([-1, 1, side, side]);
    let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 3, 2, 1, 0]);
    let (ranks, rank) = (world.world() as i64, world.rank() as i64);
    let share = samples / ranks / micros;
    let costs = Tensor::from_slice(&net.costs.table(CostUnit::Blocks));
    let step = Step {
        world,
        net: &net,
        costs: &costs,
        weights: Weights {
            alpha: 0.7,
            beta: 0.9,
            gamma: 0.02,
            target: 0.3,
            run_rate: 0.1,
            consistency_margin: 0.1,
            diversity_margin: 1.5,
            target_rate: 0.4,
            label_smoothing: 0.1,
        },
        routers,
        views,
        scope,
        statistics: Statistics::Running,
    };
    // Micro-batch a of rank r has the samples of rank r·A + a.
    let shares: Vec<i64> = (0..micros).map(|a| (rank * micros + a) * share).collect();
    let noises: Vec<Tensor> = shares
        .iter()
        .map(|&first| {
            let mine: Vec<u32> = (first..first + share).map(|sample| sample as u32).collect();
            gumbel_noise(3, 11, &mine, views as usize, 9)
        })
        .collect();
    let batch: Vec<MicroBatch> = shares
        .iter()
        .zip(&noises)
        .map(|(&first, noise)| MicroBatch {
            images: images.narrow(0, first * views, share * views),
            labels: labels.narrow(0, first, share),
            decisions: match routers {
                Routers::Train => Decisions::Relaxed {
                    noise: Some(noise),
                    temperature: 1.0,
                    relaxation: Relaxation::Gumbel,
                },
                Routers::Freeze => Decisions::Hard,
            },
        })
        .collect();
    let (gradient, measured) = step.gradient(&batch, rank == 1).unwrap();
    assert_eq!(measured.stop, ranks > 1, "one rank's wish to stop reaches all");
    let Measured { ce, con, div, cost, target, run_rate, top1, rates, hard_rates, .. } = measured;
    let mut numbers = vec![ce, con, div, cost, target, run_rate, top1];
    numbers.extend(rates.iter().chain(&hard_rates));
    assert_eq!(numbers.len(), MEASUREMENTS);
    numbers.extend(Vec::<f64>::try_from(gradient.to_kind(Kind::Double)).unwrap());
    // Every rank must hold the same bits.
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let all = collective::all_gather_bytes(world, &bytes).unwrap();
    assert!(all.iter().all(|theirs| *theirs == bytes));
    bytes
}

/// How many numbers come before the gradient: the parts of the loss, top-1, and two rates of nine gates.
const MEASUREMENTS: usize = 7 + 2 * 9;

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|eight| f64::from_le_bytes(eight.try_into().unwrap())).collect()
}

/// The step's results for 1, 2 and 4 ranks, each against one process that takes the batch whole.
fn same_for_every_world(name: &str, sharing: impl Fn(usize) -> Sharing) {
    let one = || {
        tch::set_num_threads(1);
        numbers(&one_step(collective::join().unwrap().as_ref(), Sharing { micros: 1, ..sharing(1) }))
    };
    for world in [1, 2, 4] {
        let Some(out) = on_ranks(name, world, |world| one_step(world, sharing(world.world()))) else {
            return;
        };
        let (many, one) = (numbers(&out), one());
        assert_eq!(many.len(), one.len());
        for (i, (many, one)) in many.iter().zip(&one).enumerate().take(MEASUREMENTS) {
            assert!(
                (many - one).abs() <= 1e-5 * one.abs().max(1.0),
                "{world} ranks, measurement {i}: {many}, {one}"
            );
        }
        let (many, one) = (&many[MEASUREMENTS..], &one[MEASUREMENTS..]);
        let largest = one.iter().fold(0f64, |most, x| most.max(x.abs()));
        let worst = many.iter().zip(one).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 1e-3 && worst <= 2e-5 * largest, "{world} ranks: off by {worst}, of {largest}");
        let routers_move = one.iter().rev().take(1000).any(|x| *x != 0.0);
        let expected = sharing(1).routers == Routers::Train;
        assert_eq!(routers_move, expected, "the flat gradient ends with the routers'");
    }
}

#[test]
fn relaxed_gradients_are_those_of_one_process() {
    let sharing = |_| Sharing { routers: Routers::Train, micros: 1, scope: Scope::MicroBatch };
    same_for_every_world("relaxed_gradients_are_those_of_one_process", sharing);
}

#[test]
fn hard_gradients_are_those_of_one_process() {
    let sharing = |_| Sharing { routers: Routers::Freeze, micros: 1, scope: Scope::MicroBatch };
    same_for_every_world("hard_gradients_are_those_of_one_process", sharing);
}

/// Gradients accumulated over micro-batches are those of the whole batch, the diversity loss's too, where it tells
/// apart all of the global batch.
#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() {
    let sharing =
        |ranks| Sharing { routers: Routers::Train, micros: 8 / ranks as i64 / 2, scope: Scope::GlobalBatch };
    same_for_every_world("accumulated_gradients_are_those_of_the_whole_batch", |ranks| match ranks {
        4 => Sharing { micros: 2, ..sharing(4) },
        ranks => sharing(ranks),
    });
}
