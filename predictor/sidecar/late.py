"""A line in the log when most requests pass the proxy without a hint because their prediction comes too late."""

import logging
from dataclasses import dataclass

_log = logging.getLogger(__name__)

_LATE = frozenset({"deadline", "queue_full"})


@dataclass(slots=True)
class LateHints:
    """Counts of `window` requests; each line doubles the window, so that a slow machine does not fill a log."""

    deadline: float
    """Seconds that a request waits for its prediction."""
    window: int = 20
    num_asked: int = 0
    num_late: int = 0

    def add(self, reason: str | None) -> None:
        """Count a request by why it has no prediction, None where it has one; log where most of a window were late."""
        self.num_asked += 1
        self.num_late += reason in _LATE
        if self.num_asked < self.window:
            return
        if 2 * self.num_late > self.num_asked:
            _log.warning(
                "%d of %d requests passed without a hint: the prediction took more than %g ms; let them wait longer "
                "(--deadline-ms), or give the proxy cores of its own",
                self.num_late,
                self.num_asked,
                1000 * self.deadline,
            )
            self.window *= 2
        self.num_asked = self.num_late = 0
