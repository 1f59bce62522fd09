//! The gradient's all-reduce, which overlaps the backward pass: the flat gradient is divided into buckets, and each is
//! summed over ranks as soon as it is complete. Autograd's gradients are added to it a bucket at a time, in one call.

use super::world::{CollectiveQueue, Pending, World};
use crate::config::{self, Routers, Wire};
use crate::model::{Params, Role};
use crate::sys::error::Result;
use crate::sys::{add_all, copy_all, hook_gradient};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use tch::{Kind, Tensor, no_grad};

/// The gradient of all trained tensors, laid out as [`Params::flat`], and its sum over ranks.
///
/// Each step: [`Reducer::zero`], the backward passes, [`Reducer::prepare_backward`] before each, and [`Reducer::finish`] after the
/// last.
pub struct Reducer {
    flat: Tensor,
    buckets: Arc<Mutex<BucketQueue>>,
    overlap: bool,
}

/// The buckets, which all ranks reduce in the same order.
struct BucketQueue {
    collectives: CollectiveQueue,
    wire: Wire,
    flat: Tensor,
    /// Each trained tensor's part of it, in the tensor's shape.
    views: Vec<Tensor>,
    /// In the order in which backward completes them: the reverse of their order in a forward pass.
    buckets: Vec<Bucket>,
    /// The bucket of each trained tensor.
    bucket_of: Vec<usize>,
    /// Whether complete buckets are launched: in the last micro-batch only.
    last_backward: bool,
    /// Whether the routers' buckets are reduced.
    routers: Routers,
    /// The buckets that have a part of this step's gradient.
    begun: Vec<bool>,
    /// For each bucket, gradients of this backward pass that are not yet added to the flat one, and their tensors' numbers.
    received: Vec<Vec<(usize, Tensor)>>,
    /// How many gradients of this backward pass each bucket still lacks.
    missing: Vec<usize>,
    /// The first bucket that has not been launched.
    next: usize,
    in_flight: Vec<InFlight>,
}

/// A bucket's all-reduce in progress.
struct InFlight {
    pending: Pending<()>,
    range: Range<i64>,
    /// With a bf16 wire: the copy that is reduced.
    wire_copy: Option<Tensor>,
}

/// A part of the flat gradient, of tensors with one role.
#[derive(Clone, Debug, PartialEq)]
struct Bucket {
    range: Range<i64>,
    tensors: Range<usize>,
    router: bool,
}

impl Reducer {
    /// Allocates the gradient of `params`, which autograd's are added to from now on; buckets are reduced over `world`.
    pub fn new(params: &Params, world: &World, options: &config::Collective) -> Self {
        let flat = params.flat().zeros_like();
        let bucket_role = |role: Role| Role { head: false, ..role }; // the head shares the others' buckets
        let sizes: Vec<(Role, usize, i64)> = params
            .parameters
            .iter()
            .map(|p| (bucket_role(p.role), p.use_order, p.tensor.numel() as i64))
            .collect();
        let (buckets, bucket_of) = plan_buckets(&sizes, options);
        let queue = BucketQueue {
            collectives: world.queue().clone(),
            wire: options.wire,
            flat: flat.shallow_clone(),
            views: params.named_views(&flat).into_iter().map(|(_, view)| view).collect(),
            begun: vec![false; buckets.len()],
            received: buckets.iter().map(|_| Vec::new()).collect(),
            missing: vec![0; buckets.len()],
            buckets,
            bucket_of,
            last_backward: false,
            routers: Routers::Train,
            next: 0,
            in_flight: Vec::new(),
        };
        let reducer = Self { flat, buckets: Arc::new(Mutex::new(queue)), overlap: options.overlap };
        for (index, parameter) in params.parameters.iter().enumerate() {
            for leaf in std::iter::once(&parameter.tensor).chain(&parameter.bf16) {
                hook_gradient(leaf, reducer.receiver(index));
            }
        }
        reducer
    }

    /// Receives the gradient of tensor number `index` of a backward pass.
    pub(crate) fn receiver(&self, index: usize) -> impl Fn(Tensor) + Send + Sync + 'static {
        let queue = self.buckets.clone();
        move |gradient| lock(&queue).receive(index, gradient)
    }

    /// The flat gradient: this rank's during the backward passes, the sum over ranks after [`Reducer::finish`].
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Clears the last step's gradient.
    pub fn zero(&self) {
        let _ = self.flat.shallow_clone().zero_();
        lock(&self.buckets).begun.fill(false);
    }

    /// All ranks, before each micro-batch's backward pass: with `overlap`, for the last one, and if the config wants it, buckets
    /// are launched during that pass. Those of frozen routers are left out.
    pub fn prepare_backward(&self, routers: Routers, overlap: bool) {
        lock(&self.buckets).prepare(routers, overlap && self.overlap);
    }

    /// All ranks, after that pass: launches the other buckets and waits for all. Afterwards the flat gradient is the sum
    /// over ranks, bit-identical on all of them.
    pub fn finish(&self) -> Result<()> {
        let mut queue = lock(&self.buckets);
        queue.last_backward = false;
        queue.add_received();
        queue.missing.fill(0); // a tensor without part in the step has gradient 0
        queue.launch_ready();
        for InFlight { pending, range, wire_copy } in std::mem::take(&mut queue.in_flight) {
            pending.wait()?;
            if let Some(wire_copy) = wire_copy {
                no_grad(|| queue.part(&range).copy_(&wire_copy));
            }
        }
        Ok(())
    }
}

fn lock(queue: &Mutex<BucketQueue>) -> MutexGuard<'_, BucketQueue> {
    queue.lock().expect("a panic ends the job")
}

impl BucketQueue {
    fn prepare(&mut self, routers: Routers, overlap: bool) {
        self.add_received();
        self.missing = self.buckets.iter().map(|bucket| bucket.tensors.len()).collect();
        self.routers = routers;
        self.next = 0;
        self.last_backward = overlap;
    }

    /// A hook has the gradient of a tensor.
    fn receive(&mut self, tensor: usize, gradient: Tensor) {
        let bucket = self.bucket_of[tensor];
        self.received[bucket].push((tensor, gradient));
        self.missing[bucket] -= 1;
        if self.missing[bucket] == 0 {
            self.add_bucket(bucket);
            if self.last_backward {
                self.launch_ready();
            }
        }
    }

    /// Adds what is left of a backward pass in which some tensors had no part.
    fn add_received(&mut self) {
        (0..self.buckets.len()).for_each(|bucket| self.add_bucket(bucket));
    }

    fn add_bucket(&mut self, bucket: usize) {
        if self.received[bucket].is_empty() {
            return;
        }
        let add_to_flat = if std::mem::replace(&mut self.begun[bucket], true) { add_all } else { copy_all };
        let received = std::mem::take(&mut self.received[bucket]);
        let (of_fp32, of_bf16): (Vec<_>, Vec<_>) =
            received.into_iter().partition(|(_, gradient)| gradient.kind() == Kind::Float);
        for same_kind in [of_fp32, of_bf16] {
            let (tensors, gradients): (Vec<usize>, Vec<Tensor>) = same_kind.into_iter().unzip();
            let views: Vec<&Tensor> = tensors.iter().map(|&tensor| &self.views[tensor]).collect();
            add_to_flat(&views, &gradients);
        }
    }

    /// Launches buckets in their order, up to the first that still lacks a gradient.
    fn launch_ready(&mut self) {
        while let Some(bucket) = self.buckets.get(self.next) {
            let frozen = bucket.router && self.routers == Routers::Freeze;
            if !frozen && self.missing[self.next] > 0 {
                return;
            }
            if !frozen {
                let part = self.part(&bucket.range);
                let wire_copy = (self.wire == Wire::Bf16).then(|| no_grad(|| part.to_kind(Kind::BFloat16)));
                let sent = wire_copy.as_ref().unwrap_or(&part);
                let pending = self.collectives.start_sum("an all-reduce of gradients", sent);
                self.in_flight.push(InFlight { pending, range: bucket.range.clone(), wire_copy });
            }
            self.next += 1;
        }
    }

    fn part(&self, range: &Range<i64>) -> Tensor {
        self.flat.slice(0, range.start, range.end, 1)
    }
}

/// Divides the tensors, given as (role, place in a forward pass, elements) in the order of the flat gradient, into buckets
/// of one role each. Returns the buckets in the order in which backward completes them, and the bucket of each tensor.
///
/// A bucket is closed once it holds `bucket_mb`; the first to be launched, once it holds `first_bucket_mb`.
fn plan_buckets(tensors: &[(Role, usize, i64)], options: &config::Collective) -> (Vec<Bucket>, Vec<usize>) {
    let elements = |mb: f64| (mb * 1e6 / 4.0) as i64;
    let mut end: i64 = tensors.iter().map(|(.., len)| len).sum();
    let last_used = tensors.iter().map(|(_, order, _)| *order).max();
    let mut buckets: Vec<(usize, Bucket)> = Vec::new(); // with the first place of its tensors in a forward pass
    let mut open: Option<(Role, i64)> = None; // the last bucket's role, and the elements that still fit
    for (index, &(role, order, len)) in tensors.iter().enumerate().rev() {
        match (&open, buckets.last_mut()) {
            (&Some((same, left)), Some((first, bucket))) if same == role && left > 0 => {
                bucket.range.start = end - len;
                bucket.tensors.start = index;
                *first = order.min(*first);
                open = Some((role, left - len));
            }
            _ => {
                let size = if Some(order) == last_used { options.first_bucket_mb } else { options.bucket_mb };
                let bucket = Bucket { range: end - len..end, tensors: index..index + 1, router: role.router };
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
        Role { router, norm_or_bias, head: false }
    }

    /// y = Σ a·b: both gradients are complete before backward ends. Their buckets are launched by then, unless overlap is
    /// off or the micro-batch is not the last.
    #[test]
    fn buckets_launch_during_the_last_backward_pass_only() {
        let world = dist::join().unwrap();
        for overlap in [true, false] {
            let mut params = Params::default();
            let values = Tensor::from_slice(&[1.0f32, 2.0]);
            let [a, b] = ["a", "b"]
                .map(|name| params.register_parameter(name.into(), values.copy(), role(false, false)));
            params.flatten(tch::Device::Cpu);
            let options =
                config::Collective { bucket_mb: 1e-6, first_bucket_mb: 1e-6, overlap, ..Default::default() };
            let reducer = Reducer::new(&params, &world, &options);
            let launched = || lock(&reducer.buckets).in_flight.len();
            reducer.prepare_backward(Routers::Train, false);
            (&a * &b).sum(Kind::Float).backward();
            assert_eq!(launched(), 0);
            reducer.prepare_backward(Routers::Train, true);
            (&a * &b).sum(Kind::Float).backward();
            assert_eq!(launched(), if overlap { 2 } else { 0 });
            reducer.finish().unwrap();
            assert_eq!(launched(), 0);
            assert_eq!(Vec::<f32>::try_from(reducer.flat()).unwrap(), [2.0, 4.0, 2.0, 4.0]);
        }
    }

    #[test]
    fn buckets_follow_the_reverse_order_of_the_forward_pass() {
        let weights = role(false, false);
        let norms = role(false, true);
        let routers = role(true, false);
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
        let plan = |bucket_mb, first_bucket_mb| {
            let options = config::Collective { bucket_mb, first_bucket_mb, ..config::Collective::default() };
            plan_buckets(&tensors, &options)
        };
        let bucket = |range, tensors, router| Bucket { range, tensors, router };
        // A bucket for every tensor.
        let (buckets, bucket_of) = plan(0.0, 0.0);
        let starts: Vec<i64> = buckets.iter().map(|bucket| bucket.range.start).collect();
        assert_eq!(starts, [38, 30, 36, 39, 10, 35, 0]);
        assert_eq!(bucket_of, [6, 4, 1, 5, 2, 0, 3]);
        // One bucket a role, complete when its first layer's gradient is.
        let (buckets, bucket_of) = plan(25.0, 1.0);
        let expected = [bucket(39..79, 6..7, true), bucket(35..39, 3..6, false), bucket(0..35, 0..3, false)];
        assert_eq!(buckets, expected);
        assert_eq!(bucket_of, [2, 2, 2, 1, 1, 1, 0]);
        // 24 elements a bucket: the weights of the last two layers, then that of the first.
        let (buckets, _) = plan(96e-6, 96e-6);
        assert_eq!(
            buckets[1..],
            [bucket(10..35, 1..3, false), bucket(35..39, 3..6, false), bucket(0..10, 0..1, false)]
        );
    }
}
