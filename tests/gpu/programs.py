"""Runs this project's programs on the simulated GPUs, and reads the simulator's reports."""

import collections
import os
import pathlib
import re
import subprocess
import time

MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]
# Each rank of a host may see only its own GPU.
OWN_GPU = ["sh", "-c", 'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"', "sh"]


class Result:
    """The end of a command: exit code, output, and the reports of its processes."""

    def __init__(self, code, output, seconds, reports):
        self.code = code
        self.output = output
        self.seconds = seconds
        self.counts = collections.Counter()
        for report in reports:
            for line in report.read_text().splitlines():
                what, _, number = line.rpartition(": ")
                self.counts[what] += int(number)

    def complaints(self):
        """What the simulator found wrong: kind and number."""
        return {what[1:]: n for what, n in self.counts.items() if what.startswith("!")}

    def total(self, prefix):
        return sum(n for what, n in self.counts.items() if what.startswith(prefix))


class Programs:
    """`binaries` has the programs, `folder` gets runs, outputs and reports."""

    def __init__(self, simulator, binaries, folder):
        self.binaries = binaries
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        # Compiled kernels are kept there, not in the user's folder.
        variables = simulator.environment(XDG_CACHE_HOME=str(folder / "cache"))
        exports = "".join(f"export {name}='{value}'\n" for name, value in variables.items())
        self.wrapper = folder / "run.sh"
        self.wrapper.write_text(f'#!/bin/sh\n# Runs a command on the simulated GPUs.\n{exports}exec "$@"\n')
        self.wrapper.chmod(0o755)

    def run(self, name, words, ranks=1, own_gpu=False, variables=None, limit=300, simulated=True):
        """Runs a program of this project: `words` are its name and arguments."""
        for old in self.logs.glob(f"{name}.*"):
            old.unlink()
        report = self.logs / f"{name}.report"
        command = [self.binaries / words[0], *words[1:]]
        if simulated:
            command = [self.wrapper, *command]
        if own_gpu:
            command = [*OWN_GPU, *command]
        if ranks > 1:
            command = [*MPIRUN, str(ranks), *command]
        environment = {**os.environ, "SIM_REPORT": str(report), **(variables or {})}
        start = time.monotonic()
        with open(self.logs / f"{name}.txt", "w+b") as output:
            try:
                code = subprocess.run(command, cwd=self.folder, env=environment, stdout=output, stderr=output, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = f"none in {limit} s"
            output.seek(0)
            text = output.read().decode(errors="replace")
        return Result(code, text, time.monotonic() - start, sorted(self.logs.glob(f"{name}.report.*")))

    def call_log(self, name):
        """The calls of a one-process run that had SIM_LOG set to `log_path(name)`, without thread ids."""
        (path,) = self.logs.glob(f"{name}.log.*")
        return [re.sub(r"^\d+ ", "", line) for line in path.read_text().splitlines()]

    def log_path(self, name):
        return pathlib.Path(self.logs / f"{name}.log")
