//! A network's tensors, by torchvision's names. All parameters are views of one flat buffer, all other tensors of a second one.
//! Convolutions' weights lie there as `[C', k, k, C]`, which makes activations channels-last.

use tch::{Device, Kind, Tensor, no_grad};

/// What a parameter is for: decides which of the optimiser's rules apply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role {
    /// Belongs to a router, which a stage may freeze.
    pub router: bool,
    /// A norm's scale or a bias, which may be exempt from weight decay.
    pub norm_or_bias: bool,
    /// Belongs to the head, which may have a learning rate of its own. It is used last, so that the order of the flat buffer would
    /// be the same without this field.
    pub head: bool,
}

/// A tensor that is trained.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in checkpoints, such as `layer1.0.conv1.weight`.
    pub name: String,
    /// A leaf that requires gradients; a view of the flat buffer after [`Params::flatten`].
    pub tensor: Tensor,
    /// What it is for.
    pub role: Role,
    /// Its index in the order in which a forward pass uses parameters.
    pub use_order: usize,
    /// Of a convolution's weight: the leaf that a bf16 forward pass uses in its place (see [`Params::keep_bf16_copy`]).
    pub bf16: Option<Tensor>,
}

/// All tensors of a network.
#[derive(Debug, Default)]
pub struct Params {
    /// After [`Params::flatten`] in the order of the flat buffer.
    pub parameters: Vec<Parameter>,
    /// Tensors that a checkpoint keeps but the optimiser does not train: running statistics.
    pub buffers: Vec<(String, Tensor)>,
    flat: Option<Tensor>,
    flat_buffers: Option<Tensor>,
    /// bf16, of the first parameters of `flat`.
    bf16_copy: Option<Tensor>,
}

/// The part of the flat buffer that holds the parameters of one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Of every parameter in it.
    pub role: Role,
    /// Its first element.
    pub start: i64,
    /// Its number of elements.
    pub len: i64,
}

impl Params {
    /// Adds a parameter, and returns a handle on it for the layer that uses it. Layers are made in the order of their use.
    pub fn register_parameter(&mut self, name: String, value: Tensor, role: Role) -> Tensor {
        let tensor = value.set_requires_grad(true);
        let handle = tensor.shallow_clone();
        let use_order = self.parameters.len();
        self.parameters.push(Parameter { name, tensor, role, use_order, bf16: None });
        handle
    }

    /// Gives the last parameter a leaf for its bf16 copy, empty until [`Params::keep_bf16_copy`], and returns a handle on it.
    pub fn register_bf16(&mut self) -> Tensor {
        let bf16 = Tensor::empty([0], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
        let handle = bf16.shallow_clone();
        self.parameters.last_mut().expect("a parameter").bf16 = Some(bf16);
        handle
    }

    /// Adds a tensor that is not trained, and returns a handle on it.
    pub fn register_buffer(&mut self, name: String, value: Tensor) -> Tensor {
        let handle = value.shallow_clone();
        self.buffers.push((name, value));
        handle
    }

    /// Moves all parameters into one flat buffer on `device`, ordered by role, and all buffers into another; handles follow.
    pub fn flatten(&mut self, device: Device) {
        self.parameters.sort_by_key(|parameter| parameter.role); // stable: by role, then in the order of registration
        let parameters = self.parameters.iter_mut().map(|parameter| &mut parameter.tensor);
        self.flat = Some(flatten_into(parameters.collect(), device));
        let buffers = self.buffers.iter_mut().map(|(_, buffer)| buffer);
        self.flat_buffers = Some(flatten_into(buffers.collect(), device));
    }

    /// Keeps bf16 copies of the convolutions' weights, in one buffer, so that a forward pass casts all of them at once. Their
    /// gradients are bf16.
    pub fn keep_bf16_copy(&mut self) {
        // By role, the weights of convolutions outside routers come first.
        let weights = self.parameters.iter().map_while(|p| Some((p.tensor.size(), p.bf16.as_ref()?)));
        let (shapes, leaves): (Vec<Vec<i64>>, Vec<&Tensor>) = weights.unzip();
        let len = shapes.iter().map(|shape| shape.iter().product::<i64>()).sum::<i64>();
        let copy = Tensor::zeros([len], (Kind::BFloat16, self.flat().device()));
        for (leaf, view) in leaves.into_iter().zip(split_views(&copy, shapes.into_iter())) {
            leaf.shallow_clone().set_data(&view);
        }
        self.bf16_copy = Some(copy);
    }

    /// Before a forward pass in bf16: brings the copies of [`Params::keep_bf16_copy`] up to date.
    pub fn update_bf16_copy(&self) {
        if let Some(copy) = &self.bf16_copy {
            no_grad(|| copy.shallow_clone().copy_(&self.flat().narrow(0, 0, copy.size()[0])));
        }
    }

    /// All parameters, `[elements]`.
    pub fn flat(&self) -> &Tensor {
        self.flat.as_ref().expect("flatten comes first")
    }

    /// All buffers, `[elements]`.
    pub fn flat_buffers(&self) -> &Tensor {
        self.flat_buffers.as_ref().expect("flatten comes first")
    }

    /// The flat buffer's groups, one per role, in order.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut start = 0;
        for Parameter { tensor, role, .. } in &self.parameters {
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
        self.count_prefixed("")
    }

    /// How many numbers are trained in parameters whose names start with `prefix`.
    pub fn count_prefixed(&self, prefix: &str) -> i64 {
        let prefixed = self.parameters.iter().filter(|parameter| parameter.name.starts_with(prefix));
        prefixed.map(|parameter| parameter.tensor.numel() as i64).sum()
    }

    /// Every tensor with its name: the contents of a model file.
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        let parameters = self.parameters.iter().map(|p| (p.name.clone(), p.tensor.detach()));
        let buffers = self.buffers.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        parameters.chain(buffers).collect()
    }

    /// Named views of `flat`, which has the layout of [`Params::flat`]: the contents of an optimiser file.
    pub fn named_views(&self, flat: &Tensor) -> Vec<(String, Tensor)> {
        let shapes = self.parameters.iter().map(|parameter| parameter.tensor.size());
        let names = self.parameters.iter().map(|parameter| parameter.name.clone());
        names.zip(split_views(flat, shapes)).collect()
    }

    /// A state dict of `flat` and `flat_buffers`, which have the layouts of [`Params::flat`] and [`Params::flat_buffers`].
    pub fn state_dict_of(&self, flat: &Tensor, flat_buffers: &Tensor) -> Vec<(String, Tensor)> {
        let shapes = self.buffers.iter().map(|(_, buffer)| buffer.size());
        let names = self.buffers.iter().map(|(name, _)| name.clone());
        let buffers = names.zip(split_views(flat_buffers, shapes));
        self.named_views(flat).into_iter().chain(buffers).collect()
    }
}

/// Consecutive views of `flat` with these shapes.
fn split_views(flat: &Tensor, shapes: impl Iterator<Item = Vec<i64>>) -> impl Iterator<Item = Tensor> {
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

/// Copies tensors into a new flat buffer on `device`, makes them views of it, and returns it.
fn flatten_into(tensors: Vec<&mut Tensor>, device: Device) -> Tensor {
    let total = tensors.iter().map(|tensor| tensor.numel() as i64).sum();
    let flat = Tensor::zeros([total], (Kind::Float, device));
    let shapes: Vec<Vec<i64>> = tensors.iter().map(|tensor| tensor.size()).collect();
    no_grad(|| {
        for (tensor, mut view) in tensors.into_iter().zip(split_views(&flat, shapes.into_iter())) {
            view.copy_(tensor);
            tensor.set_data(&view);
        }
    });
    flat
}
