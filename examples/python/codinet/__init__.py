"""A trained CoDiNet in PyTorch.

    import codinet

    net = codinet.load("runs/a")                      # a run directory, or a file of codinet-export --format safetensors
    images = codinet.read(net, ["a.png", "b.jpg"])    # u8 [N, C, H, W], resized and cropped as in evaluation
    result = net.predict(images)                      # .classes, .probabilities, .logits, .path, .macs
    net.paths(images)                                 # bool [N, n]: which gated blocks run
    net.features(images)                              # f32 [N, F]: the classifier's input
    codinet.export(net, "net.pt2")                    # then torch.export.load("net.pt2").module()

A network is a `torch.nn.Module` in evaluation mode on the CPU: `net.to("cuda")` moves it, and it can be trained further. It
computes the same as the Rust programs up to rounding, which the project's tests check.
"""

from codinet.files import load
from codinet.images import read
from codinet.network import CoDiNet, Prediction, export

__all__ = ["CoDiNet", "Prediction", "export", "load", "read"]
