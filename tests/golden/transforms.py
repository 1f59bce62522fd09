"""torchvision's results for small images, for tests/dataloader/transforms.rs.

    python transforms.py           writes transforms.json next to this file (needs torchvision 0.26 and Pillow)

Prints the differences between torchvision's operations on tensors and on PIL images; the data loader follows the latter.
Images are formulas, here and in the test; the file holds only results.
"""

import hashlib
import json
import math
import pathlib

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import autoaugment, functional as F
from torchvision.transforms import InterpolationMode


def image(kind, side, channels):
    y, x, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(channels), indexing="ij")
    if kind == "texture":  # every value; neighbours differ much
        values = x * x * 7 + y * y * 3 + x * y * (c + 2) * 5 + 31 * c
    elif kind == "soft":  # few values; neighbours differ little
        values = 60 + (3 * x + 2 * y + 5 * c) % 110
    elif kind == "flat":
        values = 200 - 60 * c + 0 * x
    elif kind == "colours":  # all colours with multiples of 5 in red, green and blue; 0 to 255 has 52 multiples
        n = y * side + x
        values = 5 * (n // 52 ** (2 - c) % 52)
    return (values % 256).astype(np.uint8)


def pil(pixels):
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_pixels(result):
    if isinstance(result, torch.Tensor):
        return result.permute(1, 2, 0).numpy()
    pixels = np.asarray(result)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def affine(img, translate=(0, 0), shear=(0.0, 0.0), center=None):
    return F.affine(img, 0.0, list(translate), 1.0, list(shear), InterpolationMode.NEAREST, None, center)


def degrees(share):
    return math.degrees(math.atan(share))


OPS = {
    "flip_vertical": lambda img, _: F.vflip(img),
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
    "sharpness": F.adjust_sharpness,
    "posterize": F.posterize,
    "solarize": F.solarize,
    "auto_contrast": lambda img, _: F.autocontrast(img),
    "equalize": lambda img, _: F.equalize(img),
    "shear_x": lambda img, share: affine(img, shear=(degrees(share), 0.0), center=[0, 0]),
    "shear_y": lambda img, share: affine(img, shear=(0.0, degrees(share)), center=[0, 0]),
    "translate_x": lambda img, pixels: affine(img, translate=(pixels, 0)),
    "translate_y": lambda img, pixels: affine(img, translate=(0, pixels)),
    "rotate": lambda img, angle: F.rotate(img, angle, InterpolationMode.NEAREST),
}

FACTORS = [0.0, 0.1, 0.37, 0.9, 1.0, 1.2, 1.9, 3.5]
SHEARS = [-0.99, -0.3, 0.07, 0.5]
PARAMETERS = {
    **{op: FACTORS for op in ["brightness", "contrast", "saturation", "sharpness"]},
    "hue": [-0.5, -0.3, -0.001, 0.0, 0.1, 0.25, 0.5],
    "posterize": [1, 2, 4, 7, 8],
    "solarize": [0.0, 8.5, 127.5, 200.0, 255.0],
    "shear_x": SHEARS,
    "shear_y": SHEARS,
    "translate_x": [-5, 3, 40],
    "translate_y": [-5, 3, 40],
    "rotate": [-135.0, -30.0, 4.5, 45.0, 90.0],
}

SHOWN = [("texture", 7, 3), ("soft", 8, 3), ("texture", 9, 1), ("flat", 3, 3), ("texture", 2, 3)]
HASHED = [("texture", 64, 3), ("soft", 37, 3), ("texture", 51, 1)]
COLOURS = ("colours", 375, 3)  # 375² pixels hold the 52³ colours


def digest(images):
    return hashlib.sha256(b"".join(to_pixels(img).tobytes() for img in images)).hexdigest()[:16]


def chain(ops, img):
    for op, parameter in ops:
        img = OPS[op](img, parameter)
    return img


def policies():
    """Each operation of each policy at each strength, applied to the HASHED images."""
    names = {
        "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x", "TranslateY": "translate_y",
        "Rotate": "rotate", "Brightness": "brightness", "Color": "saturation", "Contrast": "contrast",
        "Sharpness": "sharpness", "Posterize": "posterize", "Solarize": "solarize", "AutoContrast": "auto_contrast",
        "Equalize": "equalize",
    }
    spaces = {
        "rand_augment": autoaugment.RandAugment()._augmentation_space(31, (224, 224)),
        "trivial_augment_wide": autoaugment.TrivialAugmentWide()._augmentation_space(31),
    }
    for policy, space in spaces.items():
        for name, (magnitudes, signed) in space.items():
            for bin in range(0 if name == "Identity" else 31 if magnitudes.ndim else 1):
                magnitude = float(magnitudes[bin]) if magnitudes.ndim else 0.0
                for sign in [1.0, -1.0] if signed else [1.0]:
                    results = [
                        autoaugment._apply_op(pil(image(*which)), name, sign * magnitude, InterpolationMode.NEAREST, None)
                        for which in HASHED
                    ]
                    yield [policy, bin, names[name], sign * magnitude, digest(results)]


def main():
    single = [[(op, parameter)] for op in OPS for parameter in PARAMETERS.get(op, [0])]
    jitter = [("brightness", 1.3), ("contrast", 0.6), ("saturation", 1.7), ("hue", -0.08)]
    chains = [jitter, jitter[::-1], [jitter[i] for i in [2, 0, 3, 1]]]
    cases = [
        {"ops": ops, "image": which, "pixels": to_pixels(chain(ops, pil(image(*which)))).tobytes().hex()}
        for ops in single + chains
        for which in SHOWN
    ]
    of_colours = [[(op, parameter)] for op in ["hue", "saturation", "contrast"] for parameter in PARAMETERS[op]]
    golden = {
        "cases": cases,
        "colours": [{"ops": ops, "image": COLOURS, "sha256": digest([chain(ops, pil(image(*COLOURS)))])} for ops in of_colours],
        "hashed": HASHED,
        "policies": list(policies()),
    }
    text = json.dumps(golden, separators=(",", ":")).replace('},{"ops"', '},\n{"ops"').replace('],["', '],\n["')
    pathlib.Path(__file__).with_name("transforms.json").write_text(text + "\n")

    print("tensor against PIL, largest and mean difference:")
    for op in OPS:
        gaps = [
            np.abs(to_pixels(OPS[op](pil(pixels), p)).astype(int) - to_pixels(OPS[op](tensor(pixels), p)).astype(int))
            for p in PARAMETERS.get(op, [0])
            for pixels in (image(*which) for which in HASHED)
        ]
        gaps = np.concatenate([gap.ravel() for gap in gaps])
        print(f"  {op:14} {gaps.max():3} {gaps.mean():.3f}")


main()
