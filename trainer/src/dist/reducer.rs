//! The gradient, averaged over ranks while backward still computes it: the flat buffer in buckets, each of which travels
//! as soon as all of it is there.

use crate::config::{self, Routers, Wire};
use crate::dist::{Pending, Queue, World};
use crate::model::{Params, Role};
use crate::sys::error::Result;
use crate::sys::hook_gradient;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use tch::{Kind, Tensor, no_grad};

/// The gradient of all trained tensors, laid out as [`Params::flat`]; autograd adds to it in place.
pub struct Gradients {
    flat: Tensor,
    launch: Arc<Mutex<Launch>>,
    overlap: bool,
}

/// Which buckets have gone off.
struct Launch {
    queue: Queue,
    wire: Wire,
    flat: Tensor,
    /// In the order in which they go off, on every rank: the reverse of that in which a forward pass uses them.
    buckets: Vec<Bucket>,
    /// The bucket of each trained tensor.
    bucket_of: Vec<usize>,
    /// Whether backward passes launch buckets: in the last micro-batch alone.
    armed: bool,
    /// Whether the routers' buckets travel.
    routers: Routers,
    /// Gradients that each bucket still lacks.
    lacking: Vec<usize>,
    /// The first bucket that has not gone off.
    next: usize,
    /// Those under way, with their place in the flat buffer and, where the wire is bf16, what travels instead.
    under_way: Vec<(Pending<()>, Range<i64>, Option<Tensor>)>,
}

/// A stretch of the flat buffer, of tensors of one role.
#[derive(Clone, Debug, PartialEq)]
struct Bucket {
    place: Range<i64>,
    tensors: Range<usize>,
    router: bool,
}

impl Gradients {
    /// Buffers for the gradients of `params`, which autograd fills from here on; buckets go off to `world`.
    pub fn new(params: &Params, world: &World, options: &config::Collective) -> Self {
        let flat = params.flat().zeros_like();
        let sizes: Vec<(Role, usize, i64)> =
            params.trained.iter().map(|p| (p.role, p.use_order, p.tensor.numel() as i64)).collect();
        let (buckets, bucket_of) = plan(&sizes, options);
        let launch = Launch {
            queue: world.queue().clone(),
            wire: options.wire,
            flat: flat.shallow_clone(),
            lacking: vec![0; buckets.len()],
            buckets,
            bucket_of,
            armed: false,
            routers: Routers::Train,
            next: 0,
            under_way: Vec::new(),
        };
        let launch = Arc::new(Mutex::new(launch));
        let views = params.named_views(&flat);
        for (index, (parameter, (_, view))) in params.trained.iter().zip(&views).enumerate() {
            let launch = launch.clone();
            hook_gradient(&parameter.tensor, view, move || locked(&launch).ready(index));
        }
        Self { flat, launch, overlap: options.overlap }
    }

    /// The flat gradient.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Forgets the last step's.
    pub fn zero(&self) {
        let _ = self.flat.shallow_clone().zero_();
    }

    /// All ranks, before the last micro-batch's backward pass: buckets go off during it.
    pub fn arm(&self, routers: Routers) {
        locked(&self.launch).reset(routers, self.overlap);
    }

    /// All ranks, after that pass: what has not gone off goes now, and all is waited for. The flat gradient then holds
    /// the sum over ranks, to the bit the same on all.
    pub fn settle(&self) -> Result<()> {
        let mut launch = locked(&self.launch);
        launch.armed = false;
        launch.lacking.fill(0); // a tensor that took no part in the step has gradient 0
        launch.go();
        for (pending, place, sent) in std::mem::take(&mut launch.under_way) {
            pending.wait()?;
            if let Some(sent) = sent {
                no_grad(|| launch.part(&place).copy_(&sent));
            }
        }
        Ok(())
    }
}

fn locked(launch: &Mutex<Launch>) -> MutexGuard<'_, Launch> {
    launch.lock().expect("a panic ends the job")
}

impl Launch {
    fn reset(&mut self, routers: Routers, overlap: bool) {
        self.lacking = self.buckets.iter().map(|bucket| bucket.tensors.len()).collect();
        (self.routers, self.next, self.armed) = (routers, 0, overlap);
    }

    /// The gradient of a tensor is whole.
    fn ready(&mut self, tensor: usize) {
        if self.armed {
            self.lacking[self.bucket_of[tensor]] -= 1;
            self.go();
        }
    }

    /// Sends off, in their order, all buckets up to the first that lacks something.
    fn go(&mut self) {
        while let Some(bucket) = self.buckets.get(self.next) {
            let travels = !(bucket.router && self.routers == Routers::Freeze);
            if travels && self.lacking[self.next] > 0 {
                return;
            }
            if travels {
                let part = self.part(&bucket.place);
                let sent = (self.wire == Wire::Bf16).then(|| no_grad(|| part.to_kind(Kind::BFloat16)));
                let pending =
                    self.queue.start_sum("an all-reduce of gradients", sent.as_ref().unwrap_or(&part));
                self.under_way.push((pending, bucket.place.clone(), sent));
            }
            self.next += 1;
        }
    }

    fn part(&self, place: &Range<i64>) -> Tensor {
        self.flat.slice(0, place.start, place.end, 1)
    }
}

/// Cuts the tensors, given as (role, place in a forward pass, elements) in the order of the flat buffer, into buckets of
/// one role each: the buckets in the order in which backward completes them, and the bucket of each tensor.
///
/// A bucket is closed once it holds `bucket_mb`; the first to go off, once it holds `first_bucket_mb`.
fn plan(tensors: &[(Role, usize, i64)], options: &config::Collective) -> (Vec<Bucket>, Vec<usize>) {
    let elements = |mb: f64| (mb * 1e6 / 4.0) as i64;
    let mut end: i64 = tensors.iter().map(|(.., len)| len).sum();
    let last_used = tensors.iter().map(|(_, order, _)| *order).max();
    let mut buckets: Vec<(usize, Bucket)> = Vec::new(); // with the first place in a forward pass of its tensors
    let mut open: Option<(Role, i64)> = None; // the last bucket's role and size
    for (index, &(role, order, len)) in tensors.iter().enumerate().rev() {
        match (&open, buckets.last_mut()) {
            (&Some((same, left)), Some((first, bucket))) if same == role && left > 0 => {
                (bucket.place.start, bucket.tensors.start) = (end - len, index);
                *first = order.min(*first);
                open = Some((role, left - len));
            }
            _ => {
                let size = if Some(order) == last_used { options.first_bucket_mb } else { options.bucket_mb };
                let bucket = Bucket { place: end - len..end, tensors: index..index + 1, router: role.router };
                buckets.push((order, bucket));
                open = Some((role, elements(size) - len));
            }
        }
        end -= len;
    }
    buckets.sort_by_key(|(first, _)| std::cmp::Reverse(*first));
    let buckets: Vec<Bucket> = buckets.into_iter().map(|(_, bucket)| bucket).collect();
    let mut bucket_of = vec![0; tensors.len()];
    for (number, bucket) in buckets.iter().enumerate() {
        bucket_of[bucket.tensors.clone()].fill(number);
    }
    (buckets, bucket_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist;

    const fn role(router: bool, norm_or_bias: bool) -> Role {
        Role { router, norm_or_bias }
    }

    /// y = Σ a·b·x: both gradients are whole before backward is over, and have left by then, but not where that is not
    /// asked for, nor in a micro-batch that is not the last.
    #[test]
    fn buckets_leave_during_backward() {
        let world = dist::join().unwrap();
        for overlap in [true, false] {
            let mut params = Params::default();
            let values = Tensor::from_slice(&[1.0f32, 2.0]);
            let [a, b] = ["a", "b"].map(|name| params.train(name.into(), values.copy(), role(false, false)));
            params.flatten(tch::Device::Cpu);
            let options =
                config::Collective { bucket_mb: 1e-6, first_bucket_mb: 1e-6, overlap, ..Default::default() };
            let gradients = Gradients::new(&params, &world, &options);
            let left = || locked(&gradients.launch).under_way.len();
            (&a * &b).sum(Kind::Float).backward();
            assert_eq!(left(), 0);
            gradients.arm(Routers::Train);
            (&a * &b).sum(Kind::Float).backward();
            assert_eq!(left(), if overlap { 2 } else { 0 });
            gradients.settle().unwrap();
            assert_eq!(left(), 0);
            assert_eq!(Vec::<f32>::try_from(gradients.flat()).unwrap(), [2.0, 4.0, 2.0, 4.0]);
        }
    }

    #[test]
    fn buckets_go_off_in_reverse_order_of_use() {
        let (weights, norms, routers) = (role(false, false), role(false, true), role(true, false));
        // Three layers of a weight and a norm each, the second with a router.
        let tensors = [
            (weights, 0, 10),
            (weights, 2, 20),
            (weights, 5, 5),
            (norms, 1, 1),
            (norms, 4, 2),
            (norms, 6, 1),
            (routers, 3, 40),
        ];
        let of = |bucket_mb, first_bucket_mb| {
            let options = config::Collective { bucket_mb, first_bucket_mb, ..config::Collective::default() };
            plan(&tensors, &options)
        };
        let bucket = |place, tensors, router| Bucket { place, tensors, router };
        // Every tensor travels alone.
        let (buckets, bucket_of) = of(0.0, 0.0);
        let places: Vec<i64> = buckets.iter().map(|bucket| bucket.place.start).collect();
        assert_eq!(places, [38, 30, 36, 39, 10, 35, 0]);
        assert_eq!(bucket_of, [6, 4, 1, 5, 2, 0, 3]);
        // All of a role together: it goes off when its first layer's gradient is there.
        let (buckets, bucket_of) = of(25.0, 1.0);
        let expected = [bucket(39..79, 6..7, true), bucket(35..39, 3..6, false), bucket(0..35, 0..3, false)];
        assert_eq!(buckets, expected);
        assert_eq!(bucket_of, [2, 2, 2, 1, 1, 1, 0]);
        // 24 elements a bucket: the weights of the last two layers, then that of the first.
        let (buckets, _) = of(96e-6, 96e-6);
        assert_eq!(
            buckets[1..],
            [bucket(10..35, 1..3, false), bucket(35..39, 3..6, false), bucket(0..10, 0..1, false)]
        );
    }
}
