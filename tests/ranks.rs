//! Ranks that meet: collectives under a real mpirun, and the gradient of W ranks against one process's.
//!
//! Each test starts mpirun on itself: the same function is the parent and, where `CODINET_TEST_OUT` is set,
//! one of its ranks.

mod common;

use codinet_trainer::collective::{self, Collective};
use codinet_trainer::config::{Model, Routers};
use codinet_trainer::error::{Error, Exit};
use codinet_trainer::loss::Weights;
use codinet_trainer::model::{Decisions, Net, gumbel_noise};
use codinet_trainer::step::Step;
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

/// The gradient and the measurements of one step on a fixed global batch of 8 samples × 2 views.
fn one_step(world: &dyn Collective, routers: Routers) -> Vec<u8> {
    let (samples, views, side) = (8i64, 2i64, 16i64);
    let net = Net::new(&Model::default(), 1, side, 4, 5, Device::Cpu);
    let numbers = samples * views * side * side;
    let images = (Tensor::arange(numbers, (Kind::Float, Device::Cpu)) * 0.7).sin().view([-1, 1, side, side]);
    let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 3, 2, 1, 0]);
    let (share, rank) = (samples / world.world() as i64, world.rank() as i64);
    let mine: Vec<u32> = (rank * share..(rank + 1) * share).map(|sample| sample as u32).collect();
    let costs = Tensor::from_slice(&net.costs.relative());
    let noise = gumbel_noise(3, 11, &mine, views as usize, 9);
    let step = Step {
        world,
        net: &net,
        costs: &costs,
        weights: Weights {
            alpha: 0.7,
            beta: 0.9,
            gamma: 0.02,
            consistency_margin: 0.1,
            diversity_margin: 1.5,
        },
        routers,
        views,
        batch_statistics: false,
    };
    let decisions = match routers {
        Routers::Train => Decisions::Relaxed { noise: &noise, temperature: 1.0 },
        Routers::Freeze => Decisions::Hard,
    };
    let images = images.narrow(0, rank * share * views, share * views);
    let labels = labels.narrow(0, rank * share, share);
    let (gradient, measured) = step.gradient(&images, &labels, decisions, rank == 1).unwrap();
    assert_eq!(measured.stop, world.world() > 1, "one rank's wish to stop reaches all");
    let mut numbers = vec![measured.ce, measured.con, measured.div, measured.cost, measured.top1];
    numbers.extend(&measured.rates);
    numbers.extend(Vec::<f64>::try_from(gradient.to_kind(Kind::Double)).unwrap());
    // Every rank must hold the same bits.
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let all = collective::all_gather_bytes(world, &bytes).unwrap();
    assert!(all.iter().all(|theirs| *theirs == bytes));
    bytes
}

fn numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(8).map(|eight| f64::from_le_bytes(eight.try_into().unwrap())).collect()
}

fn same_for_every_world(name: &str, routers: Routers) {
    let one = || {
        tch::set_num_threads(1);
        numbers(&one_step(collective::join().unwrap().as_ref(), routers))
    };
    for world in [2, 4] {
        let Some(out) = on_ranks(name, world, |world| one_step(world, routers)) else { return };
        let (many, one) = (numbers(&out), one());
        assert_eq!(many.len(), one.len());
        for (i, (many, one)) in many.iter().zip(&one).enumerate().take(14) {
            assert!(
                (many - one).abs() <= 1e-5 * one.abs().max(1.0),
                "{world} ranks, measurement {i}: {many}, {one}"
            );
        }
        let (many, one) = (&many[14..], &one[14..]);
        let largest = one.iter().fold(0f64, |most, x| most.max(x.abs()));
        let worst = many.iter().zip(one).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 1e-3 && worst <= 2e-5 * largest, "{world} ranks: off by {worst}, of {largest}");
        let routers_move = one.iter().rev().take(1000).any(|x| *x != 0.0);
        assert_eq!(routers_move, routers == Routers::Train, "the flat gradient ends with the routers'");
    }
}

#[test]
fn relaxed_gradients_are_those_of_one_process() {
    same_for_every_world("relaxed_gradients_are_those_of_one_process", Routers::Train);
}

#[test]
fn hard_gradients_are_those_of_one_process() {
    same_for_every_world("hard_gradients_are_those_of_one_process", Routers::Freeze);
}
