"""The cases: which program runs with which settings, and how it has to end."""

import dataclasses

TWO_STAGES = """\
  - {name: relaxed, epochs: 1, lr: 0.05, schedule: cosine}
  - {name: hard, epochs: 1, lr: 0.02, schedule: cosine, routers: freeze}
"""


def base_config(data):
    """16 steps of 8 samples of 2 views: 8 with relaxed gates, 8 with hard ones."""
    return (
        "extends: fashion_r20.yaml\n"
        f"data: {{train: {data}/train, val: {data}/test, train_samples: 64}}\n"
        "optim: {batch_size: 8, eval_batch_size: 16}\n"
        "run: {threads: 1, device: cuda, log_every: 1}\n"
        f"stages:\n{TWO_STAGES}"
    )


@dataclasses.dataclass
class Case:
    """A run of one of the programs. A training run's directory is runs/NAME."""

    name: str
    # Words after `codinet-train base.yaml`, or all words of another program.
    words: list = dataclasses.field(default_factory=list)
    settings: tuple = ()
    ranks: int = 1
    # Each rank sees only its own GPU.
    own_gpu: bool = False
    variables: dict = dataclasses.field(default_factory=dict)
    simulated: bool = True
    code: int = 0
    # A pattern that the output has to match.
    says: str = ""
    # The simulator has to find something of this kind; without it, it must find nothing.
    finds: str = None
    # Cases whose runs this one uses.
    needs: tuple = ()
    # Evaluations are bit-identical to those of this case.
    same_bits_as: str = None
    # Losses agree with those of these two cases, which differ in the number of CPU threads.
    near: tuple = ()
    # A step's counts are those of held.py.
    counted: bool = False
    # Classes, paths and MACs of NAME.jsonl are those of this case.
    same_lines_as: str = None
    # A case with fewer forward passes, and how many fewer: counts of a pass are those of held.py.
    more_passes_than: tuple = ()

    def command(self):
        if self.words and not self.words[0].startswith("-"):
            return self.words
        sets = [word for setting in (f"run.dir=runs/{self.name}", *self.settings) for word in ("--set", setting)]
        return ["codinet-train", "base.yaml", *sets, *self.words]


NCCL = "collective.backend=nccl"
BF16 = "run.precision=bf16"
KERNELS = "run.cuda_kernels=true"
# Own kernels are slow on a simulated GPU.
FEW = "data.train_samples=16"
# No wait for a log line hides another one.
QUIET = "run.log_every=1000"
ENDS = "hard epoch 1/1"
# A note says why kernels are not used.
USED_KERNELS = r"(?s)^(?!.*note: run\.cuda_kernels).*hard epoch 1/1"
RESNET50 = ("model.arch=resnet50", "model.router.hidden={units: 16}", "data.train_samples=32")
# Rounding does not grow from step to step.
CALM = ("stages.0.lr=0.0001", "stages.1.lr=0.0001")
CALM_RESNET50 = (*RESNET50, "model.zero_init_last_norm=true", *CALM)


def on_cpu(name, threads, settings=()):
    return Case(name, settings=("run.device=cpu", f"run.threads={threads}", *settings), simulated=False)


def of_checkpoint(*words):
    """The arguments of a program for a trained network."""
    program, *rest = words
    return [program, *rest, "--checkpoint", "runs/fp32", "--device", "cuda"]


def classify(name, device, *words):
    """The arguments that classify the test images into NAME.jsonl."""
    checkpoint = ["--checkpoint", "runs/fp32", "--batch", "16", "--device", device]
    return ["codinet-infer", "data/test", "-o", f"{name}.jsonl", *checkpoint, *words]


def bench_infer(name, rounds, **checks):
    """Passes of the static backbone and of a forced path, whose images are gathered, in turn."""
    words = ["codinet-infer", "bench", "--config", "fashion_r20.yaml", "--batch", "16", "--share", "40", "--device", "cuda"]
    return Case(name, words=[*words, "--gather", "100", "--rounds", str(rounds)], **checks)


ONE_RANK = [
    on_cpu("cpu-1", 1, CALM),
    on_cpu("cpu-2", 2, CALM),
    Case("like-cpu", settings=CALM, near=("cpu-1", "cpu-2")),
    on_cpu("resnet50-cpu-1", 1, CALM_RESNET50),
    on_cpu("resnet50-cpu-2", 2, CALM_RESNET50),
    Case("resnet50-like-cpu", settings=CALM_RESNET50, near=("resnet50-cpu-1", "resnet50-cpu-2")),
    Case("fp32", says=ENDS),
    Case("eager-copies", variables={"SIM_EAGER_COPIES": "1"}, same_bits_as="fp32"),
    Case("poisoned-memory", variables={"SIM_POISON": "1"}, same_bits_as="fp32"),
    Case("bf16", settings=(BF16,), says=ENDS),
    Case("kernels", settings=(KERNELS, FEW), says=USED_KERNELS),
    Case("kernels-bf16", settings=(KERNELS, BF16, FEW), says=USED_KERNELS),
    Case("static", settings=("model.gates=none",), says=ENDS),
    Case(
        "optimiser",
        settings=(
            "optim={clip_norm: 1, ema_decay: 0.9, nesterov: true, label_smoothing: 0.1, decay_norm_and_bias: false, on_nonfinite: skip}",
            "data.mix.mixup_alpha=1",
            "cost={budget_gmacs: 0.02, control: price, calibrate: true, calibration_samples: 16}",
            "run.evaluate_with_noise=true",
        ),
        says=ENDS,
    ),
    Case(
        "adamw",
        settings=(
            "optim={optimizer: adamw, clip_norm: 1, lr_factors: {head: 2}, loss: binary_cross_entropy, bce_threshold: 0.2}",
            "data.mix.cutmix_alpha=1",
            "model={gates: none, drop_path: 0.2}",
            "stages.0.lr=0.001",
            "stages.1.lr=0.001",
        ),
        says=ENDS,
    ),
    Case(
        "losses",
        settings=(
            "cost.budget_gmacs=0.02",
            "data.mix.cutmix_alpha=1",
            "model.router={kind: cnn, relaxation: straight_through, noise: per_sample, temperature: {linear: {from: 2, to: 0.5}}}",
            "paths.outputs=both",
            "target_rate={weight: 0.1, rate: 0.5}",
            "run_rate.weight=0.1",
            "cost.unit=gmacs",
        ),
        says=ENDS,
    ),
    Case(
        "recurrent-router",
        settings=(
            "model={gates: same_shape, skip: shortcut, zero_init_last_norm: true}",
            "model.router.kind=rnn",
            "optim.accumulate=2",
            "diversity.scope=global_batch",
            "run.checkpoint_every=3",
        ),
        says=ENDS,
    ),
    Case("random-routing", settings=("model.routing={random: 0.5}",), says=ENDS),
    Case("fixed-path", settings=("model.routing={fixed: [0, 2, 5]}",), says=ENDS),
    Case("distillation", settings=("distill.from=runs/fp32", BF16), says=ENDS, needs=("fp32",)),
    Case("initial-weights", settings=("model.init_from=runs/fp32",), says=ENDS, needs=("fp32",)),
]

TWO_RANKS = [
    Case("nccl", ranks=2, settings=(NCCL, "run.checkpoint_every=3", "run.keep_last=20"), says="over NCCL"),
    Case("mpi", ranks=2, settings=("collective.backend=mpi",), says="over MPI", same_bits_as="nccl"),
    Case(
        "everything",
        ranks=2,
        settings=(
            NCCL,
            "collective={wire: bf16, compare_every: 2, bucket_mb: 0.1}",
            "optim={accumulate: 2, clip_norm: 1, ema_decay: 0.9}",
            "data.mix.mixup_alpha=1",
            "run.shard_optimizer=true",
            BF16,
        ),
        says="over NCCL",
    ),
    Case("lamb", ranks=2, settings=(NCCL, "optim.optimizer=lamb", "collective.compare_every=2"), says="over NCCL"),
    Case("kernels-nccl", ranks=2, settings=(NCCL, KERNELS, FEW), says=USED_KERNELS),
    Case("sync-batch-norm", ranks=2, settings=(NCCL, "model.sync_batch_norm=true", "collective.overlap=false"), says="over NCCL"),
    Case("own-gpu", ranks=2, own_gpu=True, settings=(NCCL,), says="over NCCL", same_bits_as="nccl"),
    Case(
        "resume",
        ranks=2,
        settings=(NCCL,),
        words=["--resume", "runs/nccl/checkpoints/step-00000003"],
        says="over NCCL",
        same_bits_as="nccl",
    ),
]

COUNTS = [
    Case("counts-fp32", settings=(QUIET,), counted=True),
    Case("counts-bf16", settings=(QUIET, BF16), counted=True),
    Case("counts-kernels", settings=(QUIET, BF16, KERNELS), counted=True),
    Case("counts-resnet50", settings=(QUIET, BF16, *RESNET50, "optim.batch_size=4"), counted=True),
]

OTHER_PROGRAMS = [
    Case("evaluation", words=["--resume", "runs/fp32", "--eval-only"], says="top-1", needs=("fp32",)),
    Case("doctor", ranks=2, words=["codinet-train", "--probe"], says=r'"gpu_all_reduce":{"Ok":.*"gpu":{"Ok":"Simulated GPU 0"}'),
    Case("profile", words=["--profile", "4"], says="peak memory"),
    Case("find-batch", words=["--find-batch"], variables={"SIM_GPU_MB": "300"}, says="largest batch that fits"),
    Case("infer-cpu", words=classify("infer-cpu", "cpu"), needs=("fp32",), simulated=False),
    # Of three batches, the first one is masked.
    Case("infer", words=classify("infer", "cuda", "--gather", "100"), says="of 48 with a label", needs=("fp32",), same_lines_as="infer-cpu"),
    Case("infer-bf16", words=classify("infer-bf16", "cuda", "--precision", "bf16"), says="of 48 with a label", needs=("fp32",)),
    bench_infer("infer-passes-2", rounds=1),
    bench_infer("infer-passes-6", rounds=3, more_passes_than=("infer-passes-2", 4)),
    Case("infer-curve", words=of_checkpoint("codinet-infer", "curve", "--found-on", "24"), needs=("fp32",)),
    Case("infer-bench", words=of_checkpoint("codinet-infer", "bench"), needs=("fp32",)),
    Case("analyze", words=["codinet-analyze", "runs/fp32", "--device", "cuda", "--output", "analysis"], says="report.html", needs=("fp32",)),
]


def nccl_fault(kind, after):
    return {"SIM_NCCL_FAULT": kind, "SIM_NCCL_GOOD": str(after)}


FAULTS = [
    Case("out-of-memory", settings=("optim.batch_size=64",), variables={"SIM_GPU_MB": "30"}, code=10, says="out of memory on rank 0"),
    Case("lost-gpu", variables={"SIM_GOOD_COPIES": "200"}, code=11, says="GPU 0 of .*unspecified launch failure"),
    Case("not-finite", settings=("stages.0.lr=1e30",), code=5, says="not finite"),
    Case("nccl-start", ranks=2, settings=(NCCL,), variables=nccl_fault("init", 0), code=7, says="ncclCommInitRank failed"),
    Case("nccl-error", ranks=2, settings=(NCCL,), variables=nccl_fault("error", 9), code=7, says="ncclAllReduce failed"),
    Case("nccl-late-error", ranks=2, settings=(NCCL,), variables=nccl_fault("async", 24), code=7, says="rank 1 on .*NCCL reports in"),
    Case("nccl-bad-version", ranks=2, settings=(NCCL,), variables={"SIM_NCCL_VERSION": "22807"}, code=2, says="NCCL 2.28.7 is refused"),
    Case(
        "nccl-hang",
        ranks=2,
        settings=(NCCL, "collective.timeout_s=8"),
        variables=nccl_fault("hang", 24),
        code=8,
        says="rank 1 has not arrived",
    ),
]


def all_cases():
    return [*ONE_RANK, *TWO_RANKS, *COUNTS, *OTHER_PROGRAMS, *FAULTS]
