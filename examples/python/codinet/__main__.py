"""`python -m codinet`, or `codinet-torch`: classifies images, and writes a network for torch.export or TorchScript.

    python -m codinet runs/a a.png b.jpg                    # class, path and MACs of each
    python -m codinet net.safetensors --export net.pt2
"""

import argparse
import sys

from codinet import export, load, read
from codinet.network import trace


def main():
    parser = argparse.ArgumentParser(prog="codinet", description="Classifies images with a trained CoDiNet, or converts it.")
    parser.add_argument("network", help="a run directory, or a file of codinet-export --format safetensors")
    parser.add_argument("images", nargs="*", help="image files")
    parser.add_argument("--export", metavar="OUT", help="write the network as a torch.export program (.pt2)")
    parser.add_argument("--torchscript", metavar="OUT", help="write it as TorchScript, which is deprecated since torch 2.11")
    args = parser.parse_args()
    try:
        net = load(args.network)
        if args.export:
            export(net, args.export)
        if args.torchscript:
            trace(net).save(args.torchscript)
        for file in args.images:
            result = net.predict(read(net, file))
            names = net.meta["class_names"]
            best = int(result.classes[0])
            bits = "".join(str(int(bit)) for bit in result.path[0])
            probability = float(result.probabilities[0])
            print(f"{file}: {names[best] if names else best}, {probability:.4f}, path {bits}, {int(result.macs[0])} MACs")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
