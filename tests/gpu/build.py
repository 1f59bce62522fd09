"""Builds the simulator: the libraries that stand in for CUDA, its driver, NCCL and libtorch's kernels."""

import hashlib
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE / "simulator"
RUNTIME = ["report", "settings", "devices", "streams", "memory", "copies", "launches", "driver", "unsupported"]
OPERATIONS = ["operations", "cuda_operations", "memory_of_tensors", "settings"]
# CUDA's headers are in two wheels; libtorch depends on the other.
CRT = "nvidia-cuda-crt==13.0.88"


class Simulator:
    """The built libraries. `libtorch` is the folder that `make setup CUDA=1` fills, `root` the checkout."""

    def __init__(self, root, libtorch, folder):
        self.root = root
        self.torch = libtorch / "torch"
        self.cuda_headers = libtorch / "nvidia/cu13/include"
        self.folder = folder
        self.emulator = folder / "kernels.so"

    def environment(self, **variables):
        """What a program needs to run on the simulated GPUs."""
        preloaded = ["libcudart.so.13", "libcuda.so.1", "libnccl.so.2", "liboperations.so"]
        return {
            "LD_LIBRARY_PATH": os.pathsep.join([str(self.folder), str(self.torch / "lib")]),
            "LD_PRELOAD": os.pathsep.join(str(self.folder / name) for name in preloaded),
            "SIM_EMULATOR": str(self.emulator),
            **variables,
        }

    def build(self):
        """Builds the libraries whose sources have changed since the last call."""
        self.folder.mkdir(parents=True, exist_ok=True)
        crt = self._crt_headers()
        headers = [f"-isystem{self.cuda_headers}", f"-isystem{crt}"]
        sources = [SOURCES / f"{name}.cpp" for name in RUNTIME]
        self._library("libcudart.so.13", sources, [*headers, f"-Wl,--version-script={SOURCES / 'exported.map'}", "-ldl"])
        # The driver's functions are in the same library; programs open them under the driver's name.
        empty = self.folder / "empty.cpp"
        empty.write_text("")
        runtime = [f"-L{self.folder}", "-Wl,--no-as-needed", "-l:libcudart.so.13"]
        self._library("libcuda.so.1", [empty], runtime)
        self._library("libnccl.so.2", [SOURCES / "nccl.cpp", SOURCES / "settings.cpp"], [*runtime, "-lrt"])
        torch_headers = [f"-isystem{self.torch / 'include'}", f"-isystem{self.torch / 'include/torch/csrc/api/include'}"]
        torch_libraries = [f"-L{self.torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda"]
        undefined = ["-Wl,--allow-shlib-undefined", f"-Wl,-rpath,{self.torch / 'lib'}"]
        # Without optimisation: it is the compiler's longest task, and not the program's.
        operations = [SOURCES / f"{name}.cpp" for name in OPERATIONS]
        self._library("liboperations.so", operations, ["-O0", "-DNDEBUG", *torch_headers, *torch_libraries, *undefined, *runtime])
        kernels = self.root / "trainer/src/model/kernels"
        options = ["-ffp-contract=off", "-w", f"-I{kernels}"]
        self._library(self.emulator.name, [kernels / "emulate.cpp"], options, [kernels / "kernels.cu"])

    def _library(self, name, sources, options, included=()):
        command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror=format", "-fPIC", "-shared", f"-Wl,-soname,{name}"]
        command += [f"-I{SOURCES}", "-o", self.folder / name, *sources, *options]
        digest = hashlib.sha256(repr(command).encode())
        for file in (*sources, *sorted(SOURCES.glob("*.h")), *included):
            digest.update(file.read_bytes())
        stamp = self.folder / f"{name}.built"
        if stamp.exists() and stamp.read_text() == digest.hexdigest():
            return
        print(f"building {name}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True)
        stamp.write_text(digest.hexdigest())

    def _crt_headers(self):
        include = self.folder / "crt/nvidia/cu13/include"
        if not include.exists():
            platforms = ["manylinux2014_x86_64", "manylinux_2_17_x86_64"]
            download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"]
            for platform in platforms:
                download += ["--platform", platform]
            subprocess.run([*download, "-d", self.folder, CRT], check=True)
            (wheel,) = self.folder.glob("nvidia_cuda_crt-*.whl")
            subprocess.run(["unzip", "-q", "-o", wheel, "-d", self.folder / "crt"], check=True)
        return include
