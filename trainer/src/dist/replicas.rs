//! Ranks must hold the same: they are refused at the start where they do not, and watched while they train.

use crate::config::OnDivergence;
use crate::dist::{World, all_gather_lists};
use crate::sys::error::{Error, Exit, Result};
use tch::{Kind, Tensor};

/// All ranks: an error, the same on all, where a rank has another value of any fact than rank 0.
pub fn refuse_differences(world: &World, facts: &[(&str, String)]) -> Result<()> {
    for (name, mine) in facts {
        let all = all_gather_lists(world, mine.as_bytes())?;
        if let Some(rank) = all.iter().position(|theirs| *theirs != all[0]) {
            let (theirs, first) = (String::from_utf8_lossy(&all[rank]), String::from_utf8_lossy(&all[0]));
            let (theirs, first) = apart(&theirs, &first);
            let what = format!(
                "rank {rank} has another {name} than rank 0: {theirs:?} against {first:?}; put the same on every host"
            );
            return Err(Error::on_all_ranks(Exit::Communication, what));
        }
    }
    Ok(())
}

/// Where two texts part: some characters from there on.
fn apart<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    let same = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).count();
    let from = |text: &'a str| {
        let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        &text[at(same.saturating_sub(20))..at(same + 40)]
    };
    (from(a), from(b))
}

/// The sum of a tensor's bits, taken as integers: what one flipped bit changes.
pub fn checksum(tensor: &Tensor) -> Tensor {
    tensor.detach().view_dtype(Kind::Int).sum(Kind::Int64)
}

/// The checksum as text, for [`refuse_differences`].
pub fn fingerprint(tensor: &Tensor) -> String {
    i64::try_from(checksum(tensor)).expect("one number").to_string()
}

/// All ranks: compares the tensors that every rank must hold alike: weights, momenta, the weights' running mean. A rank
/// that differs from rank 0 is an error, the same on all ranks, or takes rank 0's; returns the ranks that did.
pub fn compare(
    world: &World,
    held: &[&Tensor],
    step: u64,
    on_divergence: OnDivergence,
) -> Result<Vec<usize>> {
    let mine = Tensor::stack(&held.iter().map(|tensor| checksum(tensor)).collect::<Vec<_>>(), 0);
    let all = Vec::<Vec<i64>>::try_from(&world.all_gather(&mine)?).expect("a number per tensor and rank");
    let differ: Vec<usize> = (0..all.len()).filter(|&rank| all[rank] != all[0]).collect();
    match on_divergence {
        _ if differ.is_empty() => {}
        OnDivergence::Repair => take_rank_zeros(world, held)?,
        OnDivergence::Stop => {
            let ranks: Vec<String> = differ.iter().map(usize::to_string).collect();
            let what = format!(
                "step {step}: the weights or momenta of rank {} are no longer rank 0's; check that machine's memory, \
                 and go on from the last checkpoint with --resume RUN",
                ranks.join(", ")
            );
            return Err(Error::on_all_ranks(Exit::Communication, what));
        }
    }
    Ok(differ)
}

/// All ranks: afterwards `held` are on every rank what they are on rank 0.
pub fn take_rank_zeros(world: &World, held: &[&Tensor]) -> Result<()> {
    held.iter().try_for_each(|tensor| world.broadcast(tensor, 0))
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
    fn texts_are_told_apart_where_they_part() {
        assert_eq!(apart("the same and a", "the same and b"), ("the same and a", "the same and b"));
        let long = "x".repeat(100);
        let (a, b) = apart(&long, &long[..50]);
        assert_eq!((a.len(), b.len()), (60, 20));
    }
}
