"""Compares codinet-infer and the exports with PyTorch and onnxruntime, on the images of a set of shards.

    infer_check.py --run RUN --shards data/fashion-mnist/test [--bin target/release] [--images 10000] [--onnx 100]

Compared are codinet-infer (batches of 64, skipped blocks not computed) and the package in examples/python (masked, and skipping). For the
first images also onnxruntime and torch.export. Each image must have the same class and path, and logits within 1e-4. The
torchvision file must fill every key of torchvision's resnet50, and compute the same as the gated network with every block run.
Needs torch, safetensors, numpy and Pillow; onnxruntime and torchvision for their parts. For each image that differs, the script
prints the gate nearest to 0: there, rounding decides.
"""

import argparse
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import numpy
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples/python"))
import codinet  # noqa: E402


def images(shards, most):
    """The first images of all shards, u8 [N, C, H, W], in the order of the shards."""
    result = []
    for shard in sorted(pathlib.Path(shards).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.rsplit(".", 1)[-1] in ("png", "jpg", "jpeg") and len(result) < most:
                    pixels = numpy.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))
                    result.append(torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy()))
    return torch.stack(result)


def compare(name, infer, logits, path, gates):
    """Prints how many classes and paths differ, and the largest difference of logits where the paths are equal."""
    ours = torch.tensor([line["logits"] for line in infer])
    bits = torch.tensor([[int(bit) for bit in line["path"]] for line in infer]).reshape(len(infer), -1)
    other_path = (bits != path.int()).any(1)
    same = ~other_path
    classes = int((ours.argmax(1) != logits.argmax(1)).sum())
    off = float((ours - logits)[same].abs().max())
    print(f"{name}: {len(infer)} images, {classes} classes differ, {int(other_path.sum())} paths differ, logits differ by {off:.2e}")
    for n in other_path.nonzero().flatten().tolist():
        print(f"  {infer[n]['image']}: nearest gate {float(gates[n].abs().min()):.1e}")
    return classes == 0 and not other_path.any() and off <= 1e-4


def check_torchvision(bin, folder):
    """Loads an untrained gated ResNet-50, exported with --format torchvision, into torchvision's network."""
    import torchvision
    from safetensors.torch import load_file, save_file

    meta = {"arch": "resnet50", "gates": "all", "skip": "project", "stride_in": "conv2", "router": "fc"}
    meta |= {"classes": 1000, "channels": 3}
    widths = [64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 2]  # input channels of each block
    names = [f"layer{s + 1}.{b}" for s, depth in enumerate([3, 4, 6, 3]) for b in range(depth)]
    hidden = {f"{name}.router.fc1.weight": torch.empty(64, width) for name, width in zip(names, widths)}
    # A block has the convolutions that its file has.
    hidden |= {f"{name}.{part}.weight": torch.empty(0) for name in names for part in ("conv1", "downsample.0")}
    net = codinet.CoDiNet(meta, hidden).eval()
    for block in net.blocks():
        block.router.fc2.bias.data.copy_(torch.tensor([0.0, 1e3]))
    tensors = {name: t.contiguous() for name, t in net.state_dict().items() if "num_batches" not in name}
    save_file(tensors, folder / "r50.safetensors")
    (folder / "r50.yaml").write_text("extends: imagenet_r50.yaml\nmodel: {stride_in: conv2}\n")
    command = [f"{bin}/codinet-export", "--checkpoint", folder / "r50.safetensors", "--config", folder / "r50.yaml"]
    command += ["--format", "torchvision", "--output", folder / "tv.safetensors"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    reference = torchvision.models.resnet50().eval()
    missing, unexpected = reference.load_state_dict(load_file(folder / "tv.safetensors"), strict=False)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours = net(x)[0]
        off = float((ours - reference(x)).abs().max())
    print(f"torchvision's resnet50: {len(missing)} keys missing, {len(unexpected)} unexpected, logits differ by {off:.2e}")
    return not missing and not unexpected and off <= 1e-4 * max(1, float(ours.abs().max()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--bin", default=str(ROOT / "target/release"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--onnx", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)

        def export(form, name, *words):
            command = [f"{args.bin}/codinet-export", "--checkpoint", args.run, "--format", form, *words]
            subprocess.run([*command, "--output", folder / name], check=True, stdout=subprocess.DEVNULL)
            return folder / name

        command = [f"{args.bin}/codinet-infer", "--checkpoint", args.run, args.shards, "--logits", "--device", "cpu"]
        command += ["--threads", str(args.threads), "--output", folder / "preds.jsonl"]
        subprocess.run(command, check=True)
        infer = [json.loads(line) for line in (folder / "preds.jsonl").open()][: args.images]
        net = codinet.load(export("safetensors", "net.safetensors"))
        x = net.prepare(images(args.shards, args.images))
        assert len(x) == len(infer), (len(x), len(infer))
        equal = True
        with torch.no_grad():
            for skip in (False, True):
                parts = [torch.cat(part) for part in zip(*(net(part, skip) for part in x.split(256)))]
                equal &= compare(f"PyTorch, {'skipping' if skip else 'masked'}", infer, parts[0], parts[2], parts[1])
            macs = net.macs(parts[2])
            wrong = int((macs - torch.tensor([line["macs"] for line in infer]).double()).abs().gt(0.5).sum())
            print(f"MACs: {wrong} differ")
            equal &= wrong == 0
            few = x[: args.onnx]
            exported = folder / "net.pt2"
            codinet.export(net, exported)
            logits, gates, path = torch.export.load(str(exported)).module()(few)
            equal &= compare("torch.export", infer[: args.onnx], logits, path, gates)
        try:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = args.threads

            def run(name, batches, *words):
                file = export("onnx", name, *words)
                session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
                outputs = [session.run(["logits", "gates", "path"], {"images": batch.numpy()}) for batch in batches]
                logits, gates, path = (torch.from_numpy(numpy.concatenate(parts)) for parts in zip(*outputs))
                return compare(f"onnxruntime{''.join(' ' + word for word in words)}", infer[: args.onnx], logits, path, gates)

            equal &= run("net.onnx", [few])
            equal &= run("one.onnx", few.split(1), "--skip")
        except ImportError:
            print("onnxruntime: not installed")
        try:
            equal &= check_torchvision(args.bin, folder)
        except ImportError:
            print("torchvision: not installed")
    print("all equal" if equal else "THEY DIFFER")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
