//! Checks that ranks hold the same data: at start-up, and every so many steps while they train.

use super::agreement::all_gather_objects;
use super::world::World;
use crate::config::OnDivergence;
use crate::sys::error::{Error, Exit, Result};
use tch::{Kind, Tensor};

/// All ranks: checks that each fact, a name and a value, has the same value on every rank. An error is the same on all
/// ranks.
pub fn refuse_differences(world: &World, facts: &[(&str, String)]) -> Result<()> {
    for (name, own) in facts {
        let all = all_gather_objects(world, own)?;
        if let Some(rank) = all.iter().position(|value| *value != all[0]) {
            let (value, expected) = first_difference(&all[rank], &all[0]);
            let what = format!(
                "rank {rank} has a different {name} than rank 0: {value:?} instead of {expected:?}; use the same on \
                 every host"
            );
            return Err(Error::on_all_ranks(Exit::Communication, what));
        }
    }
    Ok(())
}

/// Some characters of two texts, around the first that differs.
fn first_difference<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    let same = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).count();
    let excerpt = |text: &'a str| {
        let offset = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        &text[offset(same.saturating_sub(20))..offset(same + 40)]
    };
    (excerpt(a), excerpt(b))
}

/// The sum of a tensor's elements read as integers, which any one flipped bit changes.
pub fn checksum(tensor: &Tensor) -> Tensor {
    tensor.detach().view_dtype(Kind::Int).sum(Kind::Int64)
}

/// The checksum as text, for [`refuse_differences`].
pub fn fingerprint(tensor: &Tensor) -> String {
    i64::try_from(checksum(tensor)).expect("one number").to_string()
}

/// All ranks: compares the checksums of tensors that must be bit-identical: weights, momenta, their moving average. If ranks
/// differ from rank 0, either all ranks return the same error, or rank 0's tensors are broadcast and those ranks returned.
pub fn compare_tensors(
    world: &World,
    tensors: &[&Tensor],
    step: u64,
    on_divergence: OnDivergence,
) -> Result<Vec<usize>> {
    let own = Tensor::stack(&tensors.iter().map(|tensor| checksum(tensor)).collect::<Vec<_>>(), 0);
    let all = Vec::<Vec<i64>>::try_from(&world.all_gather(&own)?).expect("a number per tensor and rank");
    let differ: Vec<usize> = (0..all.len()).filter(|&rank| all[rank] != all[0]).collect();
    match on_divergence {
        _ if differ.is_empty() => {}
        OnDivergence::Repair => broadcast_all(world, tensors)?,
        OnDivergence::Stop => {
            let ranks: Vec<String> = differ.iter().map(usize::to_string).collect();
            let what = format!(
                "step {step}: the weights or momenta of rank {} differ from rank 0's; check that machine's memory, and \
                 resume from the last checkpoint with --resume RUN",
                ranks.join(", ")
            );
            return Err(Error::on_all_ranks(Exit::Communication, what));
        }
    }
    Ok(differ)
}

/// All ranks: copies rank 0's tensors into every rank's.
pub fn broadcast_all(world: &World, tensors: &[&Tensor]) -> Result<()> {
    tensors.iter().try_for_each(|tensor| world.broadcast(tensor, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_changes_the_checksum() {
        let tensor = (Tensor::arange(10_000, (Kind::Float, tch::Device::Cpu)) * 0.37).sin();
        let before = checksum(&tensor);
        for bit in [0, 12, 31] {
            let flipped = tensor.copy();
            let bits = flipped.view_dtype(Kind::Int).get(4321);
            let _ = bits.shallow_clone().bitwise_xor_(1i64 << bit);
            assert!(!checksum(&flipped).equal(&before), "bit {bit}");
        }
    }

    #[test]
    fn excerpts_begin_shortly_before_the_first_difference() {
        assert_eq!(
            first_difference("the same and a", "the same and b"),
            ("the same and a", "the same and b")
        );
        let long = "x".repeat(100);
        let (a, b) = first_difference(&long, &long[..50]);
        assert_eq!((a.len(), b.len()), (60, 20));
    }
}
