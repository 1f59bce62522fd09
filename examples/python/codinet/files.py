"""Networks from run directories, checkpoints and exports."""

import hashlib
import json
import warnings
from os import PathLike
from pathlib import Path

import safetensors
import yaml

from codinet.network import CoDiNet

MODEL = "model.safetensors"


def load(path: str | PathLike) -> CoDiNet:
    """Loads a trained network, in evaluation mode, on the CPU.

    Args:
        path: One of
            - a run directory: its newest checkpoint whose checksum is right;
            - a folder `step-…`, a folder of `model.safetensors` and `config.yaml`, or `checkpoints/best`;
            - a file of `codinet-export --format safetensors`, which needs no config;
            - another `.safetensors` file of a run directory, such as `step-…/ema.safetensors`.

    Returns:
        The network. `net.meta` describes it: the keys of the export's metadata, such as `classes`, `image_size`, `class_names`.

    Raises:
        FileNotFoundError: There is no such file or checkpoint.
        ValueError: The weights are damaged or of another network, their config is not found, or the run has random paths.
    """
    file = find_weights(Path(path))
    try:
        with safetensors.safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: is not a .safetensors file, or is cut short: {error}") from None
    meta = json.loads(metadata["codinet"]) if "codinet" in metadata else describe(file)
    try:
        net = CoDiNet(meta, tensors)
        missing, unexpected = net.load_state_dict(tensors, strict=False)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{file}: belongs to another network: {error}") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{file}: belongs to another network: missing {missing}, unexpected {unexpected}")
    return net.eval()


def find_weights(path: Path) -> Path:
    """The file of weights that `path` stands for, as the Rust programs find it."""
    if path.name in ("best", "latest") and path.is_file():
        path = path.with_name(path.read_text().strip())
    if path.is_dir() and not (path / MODEL).is_file():
        steps = sorted(complete.parent for complete in path.glob("checkpoints/step-*/COMPLETE"))
        if not steps:
            raise FileNotFoundError(f"{path}: is no run directory: it has no complete checkpoint")
        for step in reversed(steps):
            try:
                return check_sum(step / MODEL)
            except ValueError as error:
                warnings.warn(f"{error}; an older checkpoint is used")
        raise ValueError(f"{path}: all of its checkpoints are damaged")
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no such run directory, step folder or .safetensors file")
    return check_sum(file)


def check_sum(file: Path) -> Path:
    """`file`, if it has the SHA-256 in the `state.json` next to it, or if there is none."""
    state = file.with_name("state.json")
    if state.is_file():
        expected = json.loads(state.read_text())["files"].get(file.name)
        if expected not in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
            raise ValueError(f"{file}: is damaged: its SHA-256 is not the one in state.json")
    return file


def describe(file: Path) -> dict:
    """The description of a run's network, from the `config.yaml` of its run directory: an export's metadata without MACs."""
    folder = file.resolve().parent
    runs = [run for run in (folder, folder.parent.parent) if (run / "config.yaml").is_file()]
    if not runs:
        raise ValueError(f"{file}: has no description and is in no run directory; load an export of it (codinet-export)")
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    model = config["model"]
    if "random" in model.get("routing", "routers"):
        raise ValueError(f"{file}: has random paths (model.routing) and no routers")
    names = runs[0] / "class_names.json"
    meta = {key: model[key] for key in ("arch", "gates", "skip", "stride_in")}
    meta |= {key: config["data"][key] for key in ("classes", "channels", "mean", "std", "eval_resize")}
    meta["image_size"] = config["data"].get("eval_size") or config["data"]["image_size"]
    meta |= {"routing": model.get("routing", "routers"), "router": model["router"]["kind"]}
    meta |= {"activation": model["router"].get("activation", "relu")}
    return meta | {"class_names": json.loads(names.read_text()) if names.is_file() else None}
