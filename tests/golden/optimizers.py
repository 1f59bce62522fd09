"""Some steps of torch.optim.AdamW and of LAMB, for the tests of trainer/src/optim/.

    python optimizers.py           writes optimizers.json next to this file (needs torch; any recent version)

LAMB is written from its paper and the description of timm's `Lamb`, tensor by tensor. timm 1.0.31's `Lamb` gives the same weights to 4e-16, if
frozen groups are kept from it: it also counts their steps. Weights and gradients are sines of their
indices, so that the golden file holds only results. Routers are frozen in the first steps, and one gradient is not finite.
"""

import json
import pathlib

import torch

SHAPES = {
    "conv.weight": [6, 3, 3, 3],
    "bn.weight": [6],
    "bn.bias": [6],
    "fc.weight": [4, 6],
    "fc.bias": [4],
    "router.weight": [2, 6],
    "router.bias": [2],
    "zero.weight": [3, 2],
}
STEPS = 8
FROZEN = 3  # steps
NOT_FINITE = 5  # this step
SCALES = [0.05, 0.5, 3.0]  # of gradients: some are clipped


def wave(shape, phase):
    n = torch.Size(shape).numel()
    return torch.sin(torch.arange(n, dtype=torch.float64) * 0.7 + phase).reshape(shape)


def initial(name, k):
    return torch.zeros(SHAPES[name], dtype=torch.float64) if name.startswith("zero") else wave(SHAPES[name], k)


def gradient(name, k, step):
    return wave(SHAPES[name], 2.0 * k + 1.3 * step) * SCALES[step % 3]


class Lamb(torch.optim.Optimizer):
    def __init__(self, groups, lr, betas, eps, weight_decay, limit):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.limit = limit

    @torch.no_grad()
    def step(self):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([g.pow(2).sum() for g in gradients]).sum().sqrt()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad / max(1.0, norm / self.limit)
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                state["m"] = b1 * state.get("m", torch.zeros_like(p)) + (1 - b1) * g
                state["v"] = b2 * state.get("v", torch.zeros_like(p)) + (1 - b2) * g * g
                u = (state["m"] / (1 - b1**t)) / ((state["v"] / (1 - b2**t)).sqrt() + group["eps"])
                ratio = 1.0
                if group["weight_decay"] > 0:
                    u = u + group["weight_decay"] * p
                    if p.norm() > 0 and u.norm() > 0:
                        ratio = p.norm() / u.norm()
                p -= group["lr"] * ratio * u


def case(kind, options, lr):
    """`options`: keys of the config's section optim."""
    params = {name: initial(name, k).requires_grad_() for k, name in enumerate(SHAPES)}
    factors = options.get("lr_factors", {})
    groups = []
    for name, p in params.items():
        part = {"router": "routers", "fc": "head"}.get(name.split(".")[0])
        decays = p.dim() > 1 or options.get("decay_norm_and_bias", False)
        groups.append({
            "params": [p],
            "lr": lr * factors.get(part, 1.0),
            "weight_decay": options["weight_decay"] if decays else 0.0,
        })
    betas = options.get("betas", [0.9, 0.999])
    limit = options.get("clip_norm", 1.0 if kind == "lamb" else None)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=options.get("eps", 1e-8))
    else:
        optimizer = Lamb(groups, lr, betas, options.get("eps", 1e-6), 0.0, limit)
    for step in range(STEPS):
        if step == NOT_FINITE:
            continue
        for k, (name, p) in enumerate(params.items()):
            p.grad = None if name.startswith("router") and step < FROZEN else gradient(name, k, step)
        if kind == "adamw" and limit is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), limit)
        optimizer.step()
    options = {"optimizer": kind, **options}
    weights = {name: p.detach().flatten().tolist() for name, p in params.items()}
    return {"options": options, "lr": lr, "weights": weights}


if __name__ == "__main__":
    factors = {"routers": 0.5, "head": 2.0}
    cases = []
    for kind, lr in [("adamw", 0.03), ("lamb", 0.05)]:
        cases += [
            case(kind, {"weight_decay": 0.1}, lr),
            case(kind, {"weight_decay": 0.1, "decay_norm_and_bias": True, "lr_factors": factors}, lr),
            case(kind, {"weight_decay": 0.02, "betas": [0.8, 0.95], "eps": 1e-4, "clip_norm": 0.5}, lr),
            case(kind, {"weight_decay": 0.0}, lr),
        ]
    golden = {"torch": torch.__version__, "cases": cases}
    path = pathlib.Path(__file__).with_name("optimizers.json")
    path.write_text(json.dumps(golden) + "\n")
