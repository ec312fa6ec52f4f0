"""A predictor in front of a running engine, and the one that takes its place there."""

import threading
from pathlib import Path

from pipelines.request_bounds import RequestBounds
from pipelines.watched_folder import SECONDS_BETWEEN_LOOKS, WatchedFolder
from predictor.errors import InputError


def watched_bounds(
    folder: Path, model: str | None, tau: float, seconds: float = SECONDS_BETWEEN_LOOKS
) -> tuple[RequestBounds, WatchedFolder[RequestBounds]]:
    """Return the bounds of a folder, and what reads them again when another predictor takes its place.

    One with other length bins is left: requests in the engine are compared on the edges of the first.

    Args:
        folder: Written by `amin export` or `amin train`.
        model: Served model that is predicted for; None for the one that the predictor names.
        tau: Probability allowed below a bound.
        seconds: Between two looks at the folder.

    Raises:
        InputError: As `RequestBounds.read`, now; later it is logged.
    """
    bounds = RequestBounds.read(folder, model, tau)

    def read() -> RequestBounds:
        new = RequestBounds.read(folder, model, tau)
        if new.bins != bounds.bins:
            raise InputError(f"{folder}: the new one has other length bins; restart the engine")
        return new

    return bounds, WatchedFolder(folder, read, seconds)


class CurrentBounds:
    """The bounds that hold now, for several engines and their threads."""

    def __init__(self, folder: Path, model: str | None, tau: float, seconds: float = SECONDS_BETWEEN_LOOKS) -> None:
        """Read the folder, then look at it until stopped; arguments and errors as for `watched_bounds`."""
        self._bounds, self._watched = watched_bounds(folder, model, tau, seconds)
        self._taking = threading.Lock()

    def current(self) -> RequestBounds:
        """Return the bounds of the predictor that was read last."""
        with self._taking:
            self._bounds = self._watched.take() or self._bounds
            return self._bounds

    def look(self) -> None:
        """Read the folder now if it is another one than the last time."""
        self._watched.look()

    def stop(self) -> None:
        """Look no more; the thread ends by itself."""
        self._watched.stop()
