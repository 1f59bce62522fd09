"""Cases that take one wait out of the program and must therefore fail: without them, a test that finds nothing shows nothing."""

import comparisons
from cases import NCCL, QUIET, Case

WAITS = "stream waits "


def waits_of(counts):
    """Which streams wait for which in a run, such as "default<3"."""
    return sorted(what.removeprefix(WAITS) for what in counts if what.startswith(WAITS))


def cases(waits):
    """A case for each kind of wait between streams, and one for the allocator's."""
    settings = (NCCL, QUIET)
    without = [Case(f"no-wait {wait}", settings=settings, ranks=2, variables={"SIM_IGNORE_WAITS": wait}, finds="race") for wait in waits]
    return [*without, Case("no-record-stream", settings=(QUIET,), variables={"SIM_IGNORE_RECORD_STREAM": "1"}, finds="race")]


def host_wait_case(like):
    """`like` without the host's waits for events: it reads copies before they have arrived, and γ follows wrong rates."""
    return Case("no-host-wait", settings=(*like.settings, QUIET), variables={"SIM_IGNORE_HOST_WAITS": "1"})


def is_noticed(runs, like):
    """Whether the run without the host's waits has other results."""
    different = comparisons.equal_bits(runs, "no-host-wait", like.name)
    return ("noticed by other results" if different else "not noticed: the same results"), bool(different)
