"""Cases that take one wait out of the program and must therefore fail: without them, a test that finds nothing shows nothing."""

from cases import NCCL, QUIET, Case

WAITS = "stream waits "


def waits_of(counts):
    """Which streams wait for which in a run, such as "default<3"."""
    return sorted(what.removeprefix(WAITS) for what in counts if what.startswith(WAITS))


def cases(waits):
    """A case for each kind of wait between streams, one for the allocator's, and one for the host's."""
    settings = (NCCL, QUIET)
    without = [Case(f"no-wait {wait}", settings=settings, ranks=2, variables={"SIM_IGNORE_WAITS": wait}, finds="race") for wait in waits]
    others = {"no-record-stream": "SIM_IGNORE_RECORD_STREAM", "no-host-wait": "SIM_IGNORE_HOST_WAITS"}
    return [*without, *(Case(name, settings=(QUIET,), variables={variable: "1"}, finds="race") for name, variable in others.items())]
