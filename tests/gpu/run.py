#!/usr/bin/env python3
"""Tests everything that runs on GPUs, on simulated ones (`make test-gpu`; docs/simulated_gpu.md).

    tests/gpu/run.py                 all cases, a few minutes
    tests/gpu/run.py nccl resume     only these, and those that they need
    tests/gpu/run.py --list

Prints a line for each case, and writes them with their numbers to gpu-test.md in --work. The exit code is 1 if one fails.
"""

import argparse
import pathlib
import re
import shutil
import sys

import cases
import comparisons
import counts
import dataset
import held
import sensitivity
from build import Simulator
from programs import Programs

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Table:
    """The results so far."""

    def __init__(self):
        self.rows = []
        self.failed = []

    def add(self, name, problem, result=None, remark=""):
        numbers = ["", "", "", ""]
        if result:
            allocations = result.counts["cudaMalloc"] + result.counts["cudaHostAlloc"]
            numbers = [result.counts["!race"], result.counts["operations"] + result.counts["own kernels"], result.total("wait: "), allocations]
        self.rows.append([name, "FAILED" if problem else "ok", *numbers, problem or remark])
        if problem:
            self.failed.append(name)
        print(f"{'FAILED' if problem else 'ok':<7}{name}{': ' if problem or remark else ''}{problem or remark}", flush=True)

    def markdown(self):
        head = ["case", "result", "races", "operations", "host waits", "allocations", "remark"]
        lines = [head, ["---"] * len(head), *self.rows]
        return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def problem_of(case, result):
    """What is wrong with the end of a case, or None."""
    complaints = result.complaints()
    if result.code != case.code:
        return f"exit code {result.code} instead of {case.code}"
    if not re.search(case.says, result.output):
        return f"the output lacks {case.says!r}"
    if case.finds and case.finds not in complaints:
        return f"the simulator did not find {case.finds!r}, only {complaints or 'nothing'}"
    if not case.finds and complaints:
        return f"the simulator found {complaints}"
    return None


class Bench:
    """The programs and the results of the cases that ran."""

    def __init__(self, programs):
        self.programs = programs
        self.runs = programs.folder / "runs"
        self.table = Table()
        self.results = {}

    def run(self, case):
        """Runs a case after those that it needs, and checks it."""
        if case.name in self.results:
            return
        for name in {*case.needs, *case.near, *case.more_passes_than[:1], *filter(None, [case.same_bits_as, case.same_lines_as])}:
            self.run(next(other for other in cases.all_cases() if other.name == name))
        for folder in (self.runs / case.name, self.programs.folder / "analysis"):
            shutil.rmtree(folder, ignore_errors=True)
        variables = dict(case.variables)
        if case.counted:
            variables["SIM_LOG"] = str(self.programs.log_path(case.name))
        result = self.programs.run(case.name, case.command(), case.ranks, case.own_gpu, variables, simulated=case.simulated)
        self.results[case.name] = result
        problem = problem_of(case, result)
        remark = ""
        check = self.check_of(case)
        if check and not problem:
            remark, holds = check()
            problem = None if holds else remark
        self.table.add(case.name, problem, result, remark)

    def check_of(self, case):
        """What else a case has to show: a function of a remark and whether it holds."""
        if case.same_bits_as:
            return lambda: self.has_same_bits(case)
        if case.near:
            return lambda: comparisons.within_cpu_spread(self.runs, case.name, *case.near)
        if case.counted:
            return lambda: self.has_held_counts(case.name)
        if case.same_lines_as:
            return lambda: comparisons.equal_predictions(self.programs.folder, case.name, case.same_lines_as)
        if case.more_passes_than:
            return lambda: self.has_held_counts_of_passes(case)
        return None

    def has_same_bits(self, case):
        different = comparisons.equal_bits(self.runs, case.name, case.same_bits_as)
        return different or f"bit-identical to {case.same_bits_as}", not different

    def has_held_counts(self, name):
        found = counts.per_step(self.programs.call_log(name))
        expected = held.PER_STEP[name]
        if found == expected:
            return "a step: " + ", ".join(f"{number:g} {kind}" for kind, number in found.items()), True
        changed = [f"{kind} {expected.get(kind)} → {number:g}" for kind, number in found.items() if number != expected.get(kind)]
        return f"a step's counts changed: {', '.join(changed)}; if this is meant, change tests/gpu/held.py", False

    def has_held_counts_of_passes(self, case):
        other, passes = case.more_passes_than
        totals = [
            {"host waits": result.total("wait: "), "operations": result.counts["operations"]}
            for result in (self.results[case.name], self.results[other])
        ]
        found = {kind: (totals[0][kind] - totals[1][kind]) / passes for kind in held.PER_PASS}
        return f"a pass: {found}; held: {held.PER_PASS}", found == held.PER_PASS

    def run_sensitivity(self):
        """Every kind of wait, taken out, is noticed."""
        nccl = next(case for case in cases.TWO_RANKS if case.name == "nccl")
        self.run(nccl)
        for case in sensitivity.cases(sensitivity.waits_of(self.results["nccl"].counts)):
            self.run(case)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases; all without")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--libtorch", type=pathlib.Path, default=ROOT / ".libtorch", help="what make setup CUDA=1 fills")
    parser.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/release")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/gpu-test")
    options = parser.parse_args()
    known = {case.name: case for case in cases.all_cases()}
    if options.list:
        print("\n".join([*known, "sensitivity"]))
        return
    names = options.names or [*known, "sensitivity"]
    unknown = set(names) - {*known, "sensitivity"}
    if unknown:
        sys.exit(f"no case {', '.join(sorted(unknown))}; tests/gpu/run.py --list lists them")
    if not (options.libtorch / "torch/lib/libtorch_cuda.so").exists():
        print(f"skipped: {options.libtorch} has no libtorch_cuda.so; make setup CUDA=1 fetches it (3.7 GB, no GPU needed)")
        return
    work = options.work.resolve()
    simulator = Simulator(ROOT, options.libtorch.resolve(), work / "simulator")
    simulator.build()
    programs = Programs(simulator, options.binaries.resolve(), work)
    dataset.make(work / "data", programs.binaries / "codinet-data")
    (work / "base.yaml").write_text(cases.base_config(work / "data"))
    bench = Bench(programs)
    for name in names:
        if name == "sensitivity":
            bench.run_sensitivity()
        else:
            bench.run(known[name])
    (work / "gpu-test.md").write_text(bench.table.markdown())
    if bench.table.failed:
        sys.exit(f"failed: {', '.join(bench.table.failed)}; the outputs are in {programs.logs}")


if __name__ == "__main__":
    main()
