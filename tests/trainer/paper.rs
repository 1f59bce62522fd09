//! The paper's equations against values computed by hand, and their gradients against finite differences.

use codinet_trainer::config::{self, Config, Noise, Relaxation};
use codinet_trainer::loss::{self, Labels, LossInputs, Objective};
use codinet_trainer::model::{Decisions, NetOutput, PathVectors, evaluation_noise, gumbel_noise};
use tch::{Kind, Tensor};

fn rows<const N: usize>(rows: &[[f64; N]]) -> Tensor {
    Tensor::from_slice2(rows)
}

/// The mean of each column.
fn rates(paths: &Tensor) -> Tensor {
    paths.mean_dim([0].as_slice(), false, None)
}

fn value(tensor: &Tensor) -> f64 {
    f64::try_from(tensor).unwrap()
}

fn assert_close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected}");
}

#[test]
fn eq6_relaxed_gate_matches_hand_values() {
    // logit 1, noise 0.5, T 0.5: σ(3); noise −1: σ(0).
    let noise = Tensor::from_slice(&[9.0f32, 0.5, 9.0, -1.0]).view([2, 2]);
    let v = Decisions::Relaxed { noise: Some(&noise), temperature: 0.5, relaxation: Relaxation::Gumbel }
        .decide(&Tensor::from_slice(&[1.0f32, 1.0]), 1);
    let v = Vec::<f32>::try_from(v).unwrap();
    assert_close(v[0].into(), 1.0 / (1.0 + (-3.0f64).exp()), 1e-6);
    assert_close(v[1].into(), 0.5, 1e-6);
}

#[test]
fn eq13_hard_gate_opens_from_logit_zero() {
    let u = Decisions::Hard.decide(&Tensor::from_slice(&[-0.1f32, 0.0, 0.1]), 0);
    assert_eq!(Vec::<f32>::try_from(u).unwrap(), [0.0, 1.0, 1.0]);
}

#[test]
fn gumbel_noise_is_logistic_and_depends_on_sample_step_and_view() {
    let noise =
        gumbel_noise(7, 3, &(0..500).collect::<Vec<u32>>(), 2, 20, Noise::PerView).to_kind(Kind::Double);
    // The difference of two Gumbel variables is logistic: mean 0, variance π²/3.
    assert_close(value(&noise.mean(None)), 0.0, 0.05);
    assert_close(value(&noise.var(true)), std::f64::consts::PI.powi(2) / 3.0, 0.1);
    let single = gumbel_noise(7, 3, &[41], 2, 20, Noise::PerView);
    assert!(
        single.to_kind(Kind::Double).equal(&noise.narrow(0, 82, 2)),
        "noise depends on the sample, not on its position"
    );
    assert!(!single.equal(&gumbel_noise(7, 4, &[41], 2, 20, Noise::PerView)), "each step has its own noise");
    assert!(!single.get(0).equal(&single.get(1)), "each view has its own noise");
}

#[test]
fn views_of_a_sample_may_share_gumbel_noise() {
    let shared = gumbel_noise(7, 3, &[40, 41], 3, 20, Noise::PerSample).view([2, 3, 20]);
    let first = gumbel_noise(7, 3, &[40, 41], 1, 20, Noise::PerView).view([2, 1, 20]);
    assert!(shared.equal(&first.expand([2, 3, 20], false)), "the first view's draw");
    assert!(!shared.get(0).equal(&shared.get(1)), "each sample has its own noise");
}

/// A gate of logit 1 runs its block with probability σ(1) = 0.731.
#[test]
fn sampled_gate_runs_with_the_probability_of_its_logit() {
    let noise = evaluation_noise(7, &(0..10_000).collect::<Vec<u32>>(), 2);
    let logits = Tensor::full([10_000], 1.0, (Kind::Float, tch::Device::Cpu));
    let u = Decisions::Sampled(&noise).decide(&logits, 1);
    assert!(u.equal(&(logits + noise.select(1, 1)).ge(0.0).to_kind(Kind::Float)));
    assert_close(value(&u.mean(Kind::Double)), 1.0 / (1.0 + (-1.0f64).exp()), 0.015);
}

#[test]
fn evaluation_noise_depends_on_seed_and_sample_only() {
    let noise = evaluation_noise(7, &[3, 40, 41], 20);
    assert!(noise.narrow(0, 2, 1).equal(&evaluation_noise(7, &[41], 20)), "not on its batch");
    assert!(!noise.get(1).equal(&noise.get(2)), "each sample has its own noise");
    assert!(!noise.equal(&evaluation_noise(8, &[3, 40, 41], 20)), "each seed has its own noise");
    assert!(noise.narrow(1, 0, 5).equal(&evaluation_noise(7, &[3, 40, 41], 5)), "gate by gate");
}

/// Gates with logits 0 and ln 3, which run with probabilities ½ and ¾; their decisions are 1 and 0.4.
#[test]
fn path_vectors_have_decisions_or_probabilities_and_one_or_both_outputs() {
    let output = NetOutput {
        logits: rows(&[[0.0]]),
        features: rows(&[[0.0]]),
        gate_logits: rows(&[[0.0, 3f64.ln()]]),
        path: rows(&[[1.0, 0.4]]),
    };
    for (set, expected) in [
        ("paths.outputs=run", &[1.0, 0.4][..]),
        ("paths.outputs=both", &[1.0, 0.4, 0.0, 0.6]),
        ("paths.values=probability", &[0.5, 0.75]),
        ("paths={values: probability, outputs: both}", &[0.5, 0.75, 0.5, 0.25]),
        ("model.router.relaxation=straight_through", &[0.5, 0.75]),
    ] {
        let vectors = PathVectors::new(&config(&[set]));
        let columns = vectors.with_decisions(&output);
        assert!(columns.narrow(1, 0, 2).equal(&output.path), "{set}: decisions come first");
        let found = vectors.select(&columns, 2);
        assert!(
            found.allclose(&Tensor::from_slice(expected).unsqueeze(0), 0.0, 1e-12, false),
            "{set}: {found}"
        );
    }
    let both = ["paths.values=decision", "model.router.relaxation=straight_through"];
    assert!(PathVectors::new(&config(&both)).with_decisions(&output).equal(&output.path));
}

/// Distances of both outputs are √2 larger: margins divided by √2 and weights doubled give the same losses.
#[test]
fn losses_of_both_outputs_are_those_of_one_with_other_margins_and_weights() {
    let v = rows(&[[0.0, 0.0], [1.0, 0.0], [0.3, 0.7], [0.4, 0.7]]);
    let both = Tensor::cat(&[&v, &(1.0 - &v)], 1);
    let losses = |paths: &Tensor, con_margin: f64, div_margin: f64| {
        let centres = loss::path_centres(paths, 2);
        let con = loss::consistency(paths, &centres, 2, con_margin);
        let div = loss::diversity(&centres, &centres, 0, div_margin);
        [value(&con), value(&div)]
    };
    let [con, div] = losses(&both, 0.2, 1.2);
    let root = 2f64.sqrt();
    let [half_con, half_div] = losses(&v, 0.2 / root, 1.2 / root);
    assert!(con > 0.01 && div > 0.01);
    assert_close(con, 2.0 * half_con, 1e-12);
    assert_close(div, 2.0 * half_div, 1e-12);
}

#[test]
fn classification_loss_is_mean_cross_entropy_over_views() {
    // Two views of one sample of class 1: −ln(3/4) and −ln(1/4).
    let logits = rows(&[[0.0, 3f64.ln()], [3f64.ln(), 0.0]]);
    let ce = loss::classification(&logits, &Tensor::from_slice(&[1i64]).into(), 2, 0.0);
    assert_close(value(&ce), -(0.75f64.ln() + 0.25f64.ln()) / 2.0, 1e-12);
}

#[test]
fn mixed_labels_are_weighted_by_their_shares() {
    // One sample: 0.8 of class 1 and 0.2 of class 0. The network predicts 3/4 and 1/4.
    let labels = |own: i64, partner: i64, share| Labels {
        own: Tensor::from_slice(&[own]),
        partner: Some((Tensor::from_slice(&[partner]), share)),
    };
    let logits = rows(&[[0.0, 3f64.ln()]]);
    let ce = loss::classification(&logits, &labels(1, 0, 0.8), 1, 0.0);
    assert_close(value(&ce), -(0.8 * 0.75f64.ln() + 0.2 * 0.25f64.ln()), 1e-12);
    // It equals the cross entropy against probabilities, with label smoothing too.
    let logits = rows(&[[0.3, -1.0, 2.0], [1.0, 0.5, -0.5]]);
    let smoothed = loss::classification(&logits, &labels(2, 0, 0.7), 2, 0.1);
    let probabilities = rows(&[[0.3, 0.0, 0.7], [0.3, 0.0, 0.7]]);
    let expected =
        logits.cross_entropy_loss(&probabilities, None::<&Tensor>, tch::Reduction::Mean, -100, 0.1);
    assert_close(value(&smoothed), value(&expected), 1e-12);
}

/// One view of two samples and three classes, mixed 0.7 to 0.3: targets as timm's `BinaryCrossEntropy` has them, and the loss by its
/// formula.
#[test]
fn binary_cross_entropy_matches_hand_values() {
    // Class 1 of two, ε = 0: the mean of ln(1 + 3) and ln(1 + 1/3).
    let logits = rows(&[[3f64.ln(), -(3f64.ln())]]);
    let own: Labels = Tensor::from_slice(&[1i64]).into();
    let bce = loss::binary_cross_entropy(&logits, &own, 1, 0.0, None);
    assert_close(value(&bce), 4f64.ln(), 1e-12);
    let logits = rows(&[[0.3, -1.0, 2.0], [1.0, 0.5, -0.5]]);
    let mixed = |share| Labels {
        own: Tensor::from_slice(&[2i64, 0]),
        partner: Some((Tensor::from_slice(&[0i64, 2]), share)),
    };
    let expected = |targets: [[f64; 3]; 2]| {
        let targets = rows(&targets);
        let others: Tensor = 1.0 - &targets;
        let terms = targets * logits.sigmoid().log() + others * (-&logits).sigmoid().log();
        -value(&terms.mean(Kind::Double))
    };
    let bce = |share, smoothing, threshold| {
        value(&loss::binary_cross_entropy(&logits, &mixed(share), 1, smoothing, threshold))
    };
    // 0.9·0.7 + 0.1/3, 0.9·0.3 + 0.1/3, 0.1/3.
    let [own, partner, other] = [0.63 + 0.1 / 3.0, 0.27 + 0.1 / 3.0, 0.1 / 3.0];
    let smoothed = expected([[partner, other, own], [own, other, partner]]);
    assert_close(bce(0.7, 0.1, None), smoothed, 1e-12);
    assert_close(bce(0.7, 0.0, Some(0.2)), expected([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]), 1e-12);
    assert_close(bce(0.9, 0.0, Some(0.2)), expected([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), 1e-12);
}

#[test]
fn distillation_loss_matches_hand_values_and_pytorch() {
    // T = 2: logits 2·ln 3 and 0 give ¾ and ¼, equal logits ½ and ½; KL(p ‖ q) = ¾·ln(¾/½) + ¼·ln(¼/½), times T².
    let teacher = rows(&[[2.0 * 3f64.ln(), 0.0]]);
    let student = rows(&[[1.0, 1.0]]);
    let expected = 4.0 * (0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln());
    assert_close(value(&loss::distillation(&student, &teacher, 2.0)), expected, 1e-12);
    assert_close(value(&loss::distillation(&teacher, &teacher, 2.0)), 0.0, 1e-15);
    // F.kl_div(log_softmax(s/T), softmax(t/T), reduction="batchmean")·T², and its gradient.
    let teacher = rows(&[[0.3, -1.0, 2.0], [1.0, 0.5, -0.5]]);
    let start = rows(&[[0.1, 0.4, 0.2], [-1.0, 2.0, 0.3]]);
    let [ours, torch] = [(); 2].map(|()| start.copy().set_requires_grad(true));
    let found = loss::distillation(&ours, &teacher, 4.0);
    found.backward();
    let q = (&torch / 4.0).log_softmax(-1, None::<Kind>);
    let p = (&teacher / 4.0).softmax(-1, None::<Kind>);
    let expected = q.kl_div(&p, tch::Reduction::Sum, false) / 2.0 * 16.0;
    expected.backward();
    assert_close(value(&found), value(&expected), 1e-12);
    assert!(ours.grad().allclose(&torch.grad(), 0.0, 1e-12, false));
}

#[test]
fn eq8_consistency_matches_hand_values() {
    // Sample 1: views (0,0) and (1,0), centre (½,0), distances ½: [½ − 0.2]² each. Sample 2: both views are equal.
    let paths = rows(&[[0.0, 0.0], [1.0, 0.0], [0.3, 0.7], [0.3, 0.7]]);
    let centres = loss::path_centres(&paths, 2);
    assert!(centres.allclose(&rows(&[[0.5, 0.0], [0.3, 0.7]]), 1e-12, 1e-12, false));
    assert_close(value(&loss::consistency(&paths, &centres, 2, 0.2)), 2.0 * 0.09 / 4.0, 1e-12);
    assert_close(value(&loss::consistency(&paths, &centres, 2, 0.6)), 0.0, 0.0);
}

#[test]
fn eq9_diversity_matches_hand_values() {
    // Distances 0.3, 0.4 and 0.5 at a margin of ½: 2·(0.2² + 0.1² + 0)/(3·2).
    let centres = rows(&[[0.0, 0.0], [0.3, 0.0], [0.0, 0.4]]);
    assert_close(value(&loss::diversity(&centres, &centres, 0, 0.5)), 2.0 * 0.05 / 6.0, 1e-12);
    // It is the mean of the values on three ranks. With one and two samples on two ranks, it is their mean weighted by size.
    let on_rank = |(first, n)| value(&loss::diversity(&centres.narrow(0, first, n), &centres, first, 0.5));
    let ranks = [(0, 1), (1, 1), (2, 1)].map(on_rank);
    assert_close(ranks.iter().sum::<f64>() / 3.0, 2.0 * 0.05 / 6.0, 1e-12);
    assert_close((on_rank((0, 1)) + 2.0 * on_rank((1, 2))) / 3.0, 2.0 * 0.05 / 6.0, 1e-12);
    // A single sample has no pair.
    assert_close(
        value(&loss::diversity(&centres.narrow(0, 0, 1), &centres.narrow(0, 0, 1), 0, 0.5)),
        0.0,
        0.0,
    );
}

/// The mean over W ranks of the loss and of its gradient, against Eq. 9 of the whole batch, which autograd records pair by pair.
#[test]
fn eq9_value_and_gradient_are_exact_for_any_world_size() {
    let all = 24i64;
    let n = 5i64;
    let margin = 1.1;
    let start = (Tensor::arange(all * n, (Kind::Double, tch::Device::Cpu)) * 1.7).sin().view([all, n]) * 0.5;
    let whole = start.copy().set_requires_grad(true);
    let rows: Vec<Tensor> = (0..all).map(|i| whole.get(i)).collect();
    let pairs =
        (0..all as usize).flat_map(|i| (0..all as usize).map(move |j| (i, j))).filter(|(i, j)| i != j);
    let terms: Vec<Tensor> =
        pairs.map(|(i, j)| (-(&rows[i] - &rows[j]).norm() + margin).relu().square()).collect();
    let expected = Tensor::stack(&terms, 0).sum(Kind::Double) / (all * (all - 1)) as f64;
    expected.backward();
    for world in [1, 2, 3, 4, 8] {
        let share = all / world;
        let mut sum = 0.0;
        let mut gradients = Vec::new();
        for rank in 0..world {
            let own = start.narrow(0, rank * share, share).copy().set_requires_grad(true);
            let p = loss::diversity(&own, &start, rank * share, margin);
            sum += value(&p);
            p.backward();
            gradients.push(own.grad() / world as f64); // of the mean over ranks
        }
        assert_close(sum / world as f64, value(&expected), 1e-12);
        assert!(Tensor::cat(&gradients, 0).allclose(&whole.grad(), 0.0, 1e-12, false), "{world} ranks");
    }
}

/// Ten thousand centres are processed in chunks. They are a hundred centres, each repeated a hundred times.
#[test]
fn eq9_in_chunks_matches_repeated_centres() {
    let few = (Tensor::arange(100 * 16, (Kind::Double, tch::Device::Cpu)) * 0.9).sin().view([100, 16]) * 0.2;
    let many = few.repeat([100, 1]);
    let own = many.narrow(0, 300, 64);
    let found = value(&loss::diversity(&own, &many, 300, 1.0)) / (10_000.0 / 64.0);
    // Each pair of different centres occurs a hundred times, and each centre has 99 copies at distance 0.
    let equal = (0..64).map(|_| 99.0).sum::<f64>();
    let different: f64 = (0..64)
        .map(|i| {
            let distance = (few.get(i) - &few).square().sum_dim_intlist([1].as_slice(), false, None).sqrt();
            100.0 * (value(&(-distance + 1.0).relu().square().sum(None)) - 1.0)
        })
        .sum();
    assert_close(found, (equal + different) / (10_000.0 * 9_999.0), 1e-12);
}

#[test]
fn eq11_cost_matches_hand_values() {
    let cost = loss::cost(&rows(&[[1.0, 0.5], [0.0, 0.5]]), &Tensor::from_slice(&[0.8, 1.2]));
    assert_close(value(&cost), (1.4 + 0.6) / 2.0, 1e-12);
}

/// Gates of ¼ and ½ of the static network, at rates ½ and ¾: with 0.2 for the rest the batch costs 0.2 + 0.125 + 0.375 = 0.7.
#[test]
fn budget_penalty_matches_hand_values() {
    let paths = rows(&[[1.0, 0.5], [0.0, 1.0]]);
    let gates = Tensor::from_slice(&[0.25, 0.5]);
    for (least, most, expected, slope) in
        [(0.6, 0.6, 0.01, 0.2), (0.6, 0.65, 0.0025, 0.1), (0.6, 0.8, 0.0, 0.0), (0.75, 0.8, 0.0025, -0.1)]
    {
        let paths = paths.copy().set_requires_grad(true);
        let budget = loss::Budget { gates: &gates, fixed: 0.2, least, most };
        let loss = loss::budget(&paths, &rates(&paths.detach()), &budget);
        assert_close(value(&loss), expected, 1e-12);
        // 2(F − θ) times a gate's share, for each of two views.
        loss.backward();
        let gradient = Vec::<f64>::try_from(paths.grad().reshape([-1])).unwrap();
        for (i, found) in gradient.into_iter().enumerate() {
            assert_close(found, slope * [0.25, 0.5][i % 2] / 2.0, 1e-12);
        }
    }
}

#[test]
fn baseline_losses_match_hand_values() {
    // Block rates ½ and ¾; Conv-AIG's loss at a target of 0.6: 0.1² + 0.15².
    let paths = rows(&[[1.0, 0.5], [0.0, 1.0]]);
    assert_close(value(&loss::target_rate(&paths, &rates(&paths), 0.6)), 0.01 + 0.0225, 1e-12);
    assert_close(value(&loss::run_rate(&paths)), 2.5 / 4.0, 1e-12);
    assert_close(value(&loss::run_rate(&Tensor::zeros([2, 0], (Kind::Double, tch::Device::Cpu)))), 0.0, 0.0);
}

#[test]
fn straight_through_gate_is_hard_with_the_relaxed_gradient() {
    let logit = Tensor::from_slice(&[-0.3f64, 0.2, 4.0]).set_requires_grad(true);
    let decisions =
        Decisions::Relaxed { noise: None, temperature: 0.5, relaxation: Relaxation::StraightThrough };
    let v = decisions.decide(&logit, 0);
    assert_eq!(Vec::<f64>::try_from(&v.round()).unwrap(), [0.0, 1.0, 1.0]);
    assert!(v.allclose(&v.round(), 0.0, 1e-12, false));
    v.sum(Kind::Double).backward();
    for (found, logit) in Vec::<f64>::try_from(logit.grad()).unwrap().into_iter().zip([-0.3f64, 0.2, 4.0]) {
        let v = 1.0 / (1.0 + (-logit / 0.5).exp());
        assert_close(found, v * (1.0 - v) / 0.5, 1e-9);
    }
}

fn config(set: &[&str]) -> Config {
    let set: Vec<String> = set.iter().map(|&one| one.to_owned()).collect();
    config::load("fashion_r20.yaml", &set).unwrap()
}

#[test]
fn eq12_is_the_weighted_sum_of_terms() {
    let terms = [1.0, 2.0, 3.0, 4.0, 8.0, 5.0, 6.0, 7.0].map(Tensor::from);
    let config = config(&[
        "consistency.weight=0.1",
        "diversity.weight=0.01",
        "target_rate.weight=1e-4",
        "run_rate.weight=1e-5",
    ]);
    let at = |stage: usize| Objective::new(&config, &config.stages[stage], 0.001);
    assert_close(value(&at(0).weighted_sum(&terms)), 1.0 + 0.2 + 0.03 + 0.004 + 0.0005 + 0.00006, 1e-12);
    // With frozen routers only the cross entropy counts.
    assert_close(value(&at(1).weighted_sum(&terms)), 1.0, 0.0);
    // A term that is not minimised may be anything.
    let unused = [1.0, 2.0, 3.0, 4.0, f64::NAN, 5.0, 6.0, f64::NAN].map(Tensor::from);
    assert_close(value(&at(0).weighted_sum(&unused)), 1.23456, 1e-12);
    // A budget has a penalty while routers train.
    let config = self::config(&[
        "cost={budget_gmacs: 0.03, penalty: 10}",
        "consistency.weight=0",
        "diversity.weight=0",
    ]);
    let penalized = |stage: usize| Objective::new(&config, &config.stages[stage], 0.0).weighted_sum(&terms);
    assert_close(value(&penalized(0)), 1.0 + 80.0, 1e-12);
    assert_close(value(&penalized(1)), 1.0, 0.0);
    // A teacher takes its share of the cross entropy, in every stage.
    let config = self::config(&["distill={from: runs/teacher, weight: 0.3}"]);
    let taught = Objective::new(&config, &config.stages[1], 0.001).weighted_sum(&terms);
    assert_close(value(&taught), 0.7 + 0.3 * 7.0, 1e-12);
}

#[test]
fn identical_centres_have_zero_gradient() {
    let paths = rows(&[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]).set_requires_grad(true);
    let centres = loss::path_centres(&paths, 2);
    let loss =
        loss::consistency(&paths, &centres, 2, 0.2) + loss::diversity(&centres, &centres.detach(), 0, 0.5);
    assert_close(value(&loss), 0.25, 1e-12); // every pair at distance 0: 0.5²
    loss.backward();
    assert!(paths.grad().equal(&paths.zeros_like()));
}

/// The gradient that training uses against central differences of the losses of the whole batch.
#[test]
fn loss_gradients_match_finite_differences() {
    let start = Tensor::from_slice(&[
        0.1, 0.9, 0.3, 0.2, 0.7, 0.4, 0.6, 0.1, 0.5, 0.3, 0.8, 0.2, 0.15, 0.65, 0.35, 0.45, 0.25, 0.75,
    ])
    .view([6, 3]);
    let costs = Tensor::from_slice(&[0.5, 1.0, 1.5]);
    let shares = Tensor::from_slice(&[0.3, 0.2, 0.4]);
    let budget = loss::Budget { gates: &shares, fixed: 0.1, least: 0.2, most: 0.3 };
    let global = |paths: &Tensor| {
        let centres = loss::path_centres(paths, 2);
        let con = loss::consistency(paths, &centres, 2, 0.1);
        let div = loss::diversity(&centres, &centres, 0, 0.9);
        let target = loss::target_rate(paths, &rates(&centres), 0.3);
        let budget = loss::budget(paths, &rates(&centres), &budget) * 3.0;
        let others = target * 0.5 + loss::run_rate(paths) * 0.6 + budget;
        value(&(con * 0.2 + div * 0.3 + loss::cost(paths, &costs) * 0.4 + others))
    };
    let paths = start.copy().set_requires_grad(true);
    let centres = loss::path_centres(&paths, 2);
    let config = config(&[
        "consistency={weight: 0.2, margin: 0.1}",
        "diversity={weight: 0.3, margin: 0.9}",
        "target_rate={weight: 0.5, rate: 0.3}",
        "run_rate.weight=0.6",
        "cost={budget_gmacs: 0.03, penalty: 3}",
    ]);
    let objective = Objective::new(&config, &config.stages[0], 0.4);
    let logits = rows(&[[0.0]; 6]);
    let labels = Tensor::zeros([3], (Kind::Int64, tch::Device::Cpu)).into();
    let inputs = LossInputs {
        logits: &logits, // one class: its cross entropy is 0
        labels: &labels,
        views: 2,
        teacher: None,
        decisions: &paths,
        rates: &rates(&centres.detach()),
        paths: &paths,
        centres: &centres,
        peers: &centres.detach(),
        offset: 0,
        costs: &costs,
        budget: Some(&budget),
    };
    objective.evaluate(&inputs).total.backward();
    let gradient = Vec::<f64>::try_from(paths.grad().reshape([-1])).unwrap();
    let numbers = Vec::<f64>::try_from(start.reshape([-1])).unwrap();
    for (i, found) in gradient.iter().enumerate() {
        let moved = |by: f64| {
            let mut numbers = numbers.clone();
            numbers[i] += by;
            global(&Tensor::from_slice(&numbers).view([6, 3]))
        };
        assert_close(*found, (moved(1e-6) - moved(-1e-6)) / 2e-6, 1e-8);
    }
}
