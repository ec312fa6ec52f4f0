"""Standard output and error that never cost a result: nobody reads, cannot be encoded, closed, on a full disk."""

import io
import os
import sys
from typing import Any, TextIO


def on_one_line(name: str) -> str:
    """Return a name from a user's file as it can stand in a line: what breaks lines or steers terminals as escapes."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


class LastingStream(io.TextIOWrapper):
    """A text stream whose writes go nowhere from the first that fails; what is not encodable is written as escapes."""

    def write(self, text: str) -> int:
        """Return how many characters were taken, all of them."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or give up."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # what is still buffered goes there at the end of the process
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and self.fileno() == 1:
            print(f"amin: warning: standard output: {error.strerror}; the work goes on without it", file=sys.stderr)


def keep_streams() -> None:
    """Make `sys.stdout` and `sys.stderr` lasting, once; streams that a test or a notebook has put there stay."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed by `2>&-`: the next file opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _lasting(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _lasting(sys.stderr, sys.__stderr__, 2)


def _lasting(stream: Any, original: Any, descriptor: int) -> TextIO:
    if stream is None:
        return LastingStream(io.FileIO(descriptor, "w"), "utf-8", "backslashreplace", write_through=True)
    if stream is not original or isinstance(stream, LastingStream):
        return stream  # type: ignore[no-any-return]
    lines = stream.line_buffering
    return LastingStream(stream.buffer, stream.encoding, "backslashreplace", line_buffering=lines)
