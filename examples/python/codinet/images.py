"""Image files as a network's input."""

from os import PathLike
from typing import Sequence

import numpy
import torch
from PIL import Image

from codinet.network import CoDiNet


def read(net: CoDiNet, files: str | PathLike | Sequence[str | PathLike]) -> torch.Tensor:
    """Reads image files, resized and cropped as in evaluation.

    Args:
        net: The network, whose size, channels and `eval_resize` count.
        files: One file or several, of any format that Pillow opens.

    Returns:
        u8 [N, C, H, W]. Images that are resized differ from codinet-infer's in their last digits, because Pillow resizes them.

    Raises:
        OSError: A file cannot be read or decoded.
        ValueError: An image is smaller than the network's input, and the network's settings do not resize it.
    """
    if isinstance(files, (str, PathLike)):
        files = [files]
    return torch.stack([_read_one(net.meta, file) for file in files])


def _read_one(meta: dict, file: str | PathLike) -> torch.Tensor:
    """u8 [C, H, W]."""
    with Image.open(file) as opened:
        image = opened.convert("L" if meta["channels"] == 1 else "RGB")
    size = meta["image_size"]
    if meta["eval_resize"]:
        scale = meta["eval_resize"] / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    if min(image.size) < size:
        width, height = image.size
        raise ValueError(f"{file}: has {width}x{height} pixels; the network takes {size}x{size}, and does not resize")
    left, top = ((side - size) // 2 for side in image.size)
    pixels = numpy.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.reshape(size, size, -1).transpose(2, 0, 1).copy())
