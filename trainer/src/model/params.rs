//! A network's tensors: named as torchvision names them, the trained ones side by side in one flat buffer, the kept
//! ones in another. Convolutions' weights lie there as `[O, H, W, I]`, which makes activations channels-last.

use tch::{Device, Kind, Tensor, no_grad};

/// What a trained tensor is for; together they decide which rule the optimiser applies to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role {
    /// Belongs to a router, which a stage may freeze.
    pub router: bool,
    /// A norm's scale or a bias, which weight decay may leave out.
    pub norm_or_bias: bool,
}

/// A trained tensor.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in checkpoints, such as `layer1.0.conv1.weight`.
    pub name: String,
    /// A leaf that requires gradients; after [`Params::flatten`] a view of the flat buffer.
    pub tensor: Tensor,
    /// What it is for.
    pub role: Role,
    /// Its place among all trained tensors in the order in which a forward pass uses them.
    pub use_order: usize,
}

/// All tensors of a network.
#[derive(Debug, Default)]
pub struct Params {
    /// The trained tensors; after [`Params::flatten`] in the order of their place in the flat buffer.
    pub trained: Vec<Parameter>,
    /// Tensors that are kept but not trained: a norm's running statistics.
    pub buffers: Vec<(String, Tensor)>,
    flat: Option<Tensor>,
    flat_buffers: Option<Tensor>,
}

/// A stretch of the flat buffer that holds the parameters of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The role of every parameter in it.
    pub role: Role,
    /// Where it starts, in elements.
    pub start: i64,
    /// Its elements.
    pub len: i64,
}

impl Params {
    /// Adds a trained tensor and returns a handle on it for the layer that uses it.
    pub fn train(&mut self, name: String, value: Tensor, role: Role) -> Tensor {
        let tensor = value.set_requires_grad(true);
        let handle = tensor.shallow_clone();
        let use_order = self.trained.len(); // layers are made in the order of their use
        self.trained.push(Parameter { name, tensor, role, use_order });
        handle
    }

    /// Adds a tensor that is kept but not trained.
    pub fn keep(&mut self, name: String, value: Tensor) -> Tensor {
        let handle = value.shallow_clone();
        self.buffers.push((name, value));
        handle
    }

    /// Moves every trained tensor into one flat buffer on `device`, role by role, and every kept one into another; the
    /// layers' handles follow.
    pub fn flatten(&mut self, device: Device) {
        self.trained.sort_by_key(|parameter| parameter.role); // stable: by role, then as registered
        let trained = self.trained.iter_mut().map(|parameter| &mut parameter.tensor);
        self.flat = Some(side_by_side(trained.collect(), device));
        let kept = self.buffers.iter_mut().map(|(_, buffer)| buffer);
        self.flat_buffers = Some(side_by_side(kept.collect(), device));
    }

    /// The flat buffer of all trained values, `[elements]`.
    pub fn flat(&self) -> &Tensor {
        self.flat.as_ref().expect("flatten comes first")
    }

    /// The flat buffer of all kept values, `[elements]`.
    pub fn flat_buffers(&self) -> &Tensor {
        self.flat_buffers.as_ref().expect("flatten comes first")
    }

    /// The flat buffer's stretches, one a role, in order.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut start = 0;
        for Parameter { tensor, role, .. } in &self.trained {
            let len = tensor.numel() as i64;
            match groups.last_mut() {
                Some(group) if group.role == *role => group.len += len,
                _ => groups.push(Group { role: *role, start, len }),
            }
            start += len;
        }
        groups
    }

    /// How many numbers are trained.
    pub fn count(&self) -> i64 {
        self.trained.iter().map(|parameter| parameter.tensor.numel() as i64).sum()
    }

    /// Every tensor with its name: what a model file holds.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let trained = self.trained.iter().map(|p| (p.name.clone(), p.tensor.detach()));
        let kept = self.buffers.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        trained.chain(kept).collect()
    }

    /// `flat`, which is laid out as [`Params::flat`] is, cut into named tensors: what an optimiser file holds.
    pub fn named_views(&self, flat: &Tensor) -> Vec<(String, Tensor)> {
        let shaped = self.trained.iter().map(|parameter| parameter.tensor.size());
        let names = self.trained.iter().map(|parameter| parameter.name.clone());
        names.zip(cut(flat, shaped)).collect()
    }

    /// `flat` and `buffers`, laid out as [`Params::flat`] and [`Params::flat_buffers`] are, cut into named tensors.
    pub fn named_as(&self, flat: &Tensor, buffers: &Tensor) -> Vec<(String, Tensor)> {
        let kept = cut(buffers, self.buffers.iter().map(|(_, buffer)| buffer.size()));
        let names = self.buffers.iter().map(|(name, _)| name.clone());
        self.named_views(flat).into_iter().chain(names.zip(kept)).collect()
    }
}

/// Views of `flat`, one after the other, with these shapes.
fn cut(flat: &Tensor, shapes: impl Iterator<Item = Vec<i64>>) -> impl Iterator<Item = Tensor> {
    let mut start = 0;
    shapes.map(move |shape| {
        let len = shape.iter().product();
        let part = flat.narrow(0, start, len);
        start += len;
        match shape[..] {
            [o, i, h, w] => part.view([o, h, w, i]).permute([0, 3, 1, 2]),
            _ => part.view(shape.as_slice()),
        }
    })
}

/// Moves tensors into one flat buffer on `device`, which is returned; they become views of it.
fn side_by_side(tensors: Vec<&mut Tensor>, device: Device) -> Tensor {
    let total = tensors.iter().map(|tensor| tensor.numel() as i64).sum();
    let flat = Tensor::zeros([total], (Kind::Float, device));
    let shapes: Vec<Vec<i64>> = tensors.iter().map(|tensor| tensor.size()).collect();
    no_grad(|| {
        for (tensor, mut view) in tensors.into_iter().zip(cut(&flat, shapes.into_iter())) {
            view.copy_(tensor);
            tensor.set_data(&view);
        }
    });
    flat
}
