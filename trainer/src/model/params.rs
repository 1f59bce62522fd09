//! A network's tensors: named as torchvision names them, the trained ones side by side in one flat buffer.

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
}

/// All tensors of a network.
#[derive(Debug, Default)]
pub struct Params {
    /// The trained tensors; after [`Params::flatten`] in the order of their place in the flat buffer.
    pub trained: Vec<Parameter>,
    /// Tensors that are kept but not trained: a norm's running statistics.
    pub buffers: Vec<(String, Tensor)>,
    flat: Option<Tensor>,
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
        self.trained.push(Parameter { name, tensor, role });
        handle
    }

    /// Adds a tensor that is kept but not trained.
    pub fn keep(&mut self, name: String, value: Tensor) -> Tensor {
        let handle = value.shallow_clone();
        self.buffers.push((name, value));
        handle
    }

    /// Moves every trained tensor into one flat buffer on `device`, role by role, and every buffer to
    /// `device`; the layers' handles follow.
    pub fn flatten(&mut self, device: Device) {
        self.trained.sort_by_key(|parameter| parameter.role); // stable: by role, then as registered
        let total: i64 = self.trained.iter().map(|parameter| parameter.tensor.numel() as i64).sum();
        let flat = Tensor::zeros([total], (Kind::Float, device));
        no_grad(|| {
            let mut start = 0;
            for parameter in &mut self.trained {
                let len = parameter.tensor.numel() as i64;
                let mut view = flat.narrow(0, start, len).view(parameter.tensor.size().as_slice());
                view.copy_(&parameter.tensor);
                parameter.tensor.set_data(&view);
                start += len;
            }
            for (_, buffer) in &mut self.buffers {
                let moved = buffer.to_device(device);
                buffer.set_data(&moved);
            }
        });
        self.flat = Some(flat);
    }

    /// The flat buffer of all trained values, `[elements]`.
    pub fn flat(&self) -> &Tensor {
        self.flat.as_ref().expect("flatten comes first")
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
        let mut start = 0;
        let cut = |parameter: &Parameter| {
            let len = parameter.tensor.numel() as i64;
            let view = flat.narrow(0, start, len).view(parameter.tensor.size().as_slice());
            start += len;
            (parameter.name.clone(), view)
        };
        self.trained.iter().map(cut).collect()
    }
}
