//! Values and errors that all ranks share.

use super::world::World;
use crate::sys::error::{Error, Exit, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;
use tch::kind::Element;

/// All ranks: every rank's list in rank order; lengths may differ.
pub fn all_gather_lists<T: Element + Copy + Default>(world: &World, own: &[T]) -> Result<Vec<Vec<T>>> {
    let lengths = world.all_gather(&Tensor::from(own.len() as i64))?;
    let lengths = Vec::<i64>::try_from(&lengths).expect("a number per rank");
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let mut padded = own.to_vec();
    padded.resize(longest as usize, T::default());
    let rows = world.all_gather(&Tensor::from_slice(&padded))?.view([world.ranks() as i64, longest]);
    let mut lists = Vec::<Vec<T>>::try_from(&rows).expect("a row per rank");
    for (list, length) in lists.iter_mut().zip(lengths) {
        list.truncate(length as usize);
    }
    Ok(lists)
}

/// All ranks: every rank's value in rank order, sent as JSON.
pub fn all_gather_objects<T: Serialize + DeserializeOwned>(world: &World, own: &T) -> Result<Vec<T>> {
    let own = serde_json::to_vec(own).map_err(|error| json_error(&error))?;
    let all = all_gather_lists(world, &own)?;
    all.iter().map(|bytes| serde_json::from_slice(bytes).map_err(|error| json_error(&error))).collect()
}

/// All ranks: rank 0 runs `work`, and every rank returns its result, sent as JSON. An error is the same on all ranks.
pub fn on_rank_zero<T: Serialize + DeserializeOwned>(
    world: &World,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mut bytes = Vec::new();
    if world.rank() == 0 {
        let encode = |value| serde_json::to_vec(&Ok::<T, ()>(value)).map_err(|error| json_error(&error));
        bytes = work().and_then(encode).unwrap_or_else(|error| {
            let error = Err::<(), _>((error.exit as i32, error.message));
            serde_json::to_vec(&error).expect("a number and a text are JSON")
        });
    }
    let length = Tensor::from(bytes.len() as i64);
    world.broadcast(&length, 0)?;
    bytes.resize(i64::try_from(&length).expect("one number") as usize, 0);
    let bytes = Tensor::from_slice(&bytes);
    world.broadcast(&bytes, 0)?;
    let bytes = Vec::<u8>::try_from(&bytes).expect("a vector of bytes");
    match serde_json::from_slice::<Result<T, (i32, String)>>(&bytes) {
        Ok(result) => result.map_err(|(code, message)| shared_error(code, message)),
        Err(error) => Err(Error { agreed: true, ..json_error(&error) }), // all ranks have the same bytes
    }
}

/// All ranks: if any rank has an error, every rank returns the same one, that of the lowest such rank. All of them can then
/// leave in order, and it is printed once.
pub fn agree<T>(world: &World, result: Result<T>) -> Result<T> {
    let own = result.as_ref().err().map(|error| (error.exit as i32, error.message.clone()));
    match all_gather_objects(world, &own)?.into_iter().flatten().next() {
        None => result,
        Some((code, message)) => Err(shared_error(code, message)),
    }
}

fn shared_error(code: i32, message: String) -> Error {
    Error::on_all_ranks(Exit::from_code(code).unwrap_or(Exit::Panic), message)
}

fn json_error(error: &serde_json::Error) -> Error {
    Error::new(Exit::Communication, format!("cannot exchange a value between ranks: {error}"))
}
