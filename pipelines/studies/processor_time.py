"""The processor time of other processes: a clock that other work on the machine does not move (Linux)."""

import time
from collections.abc import Sequence


def processor_seconds(pids: Sequence[int]) -> float:
    """Return the processor time of processes since they started; 0 of one that has ended."""
    return sum(map(_seconds, pids))


def _seconds(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    except OSError:
        return 0.0
