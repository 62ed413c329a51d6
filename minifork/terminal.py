"""Standard output and error that cannot end a run, even when nobody reads them any more."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class TolerantOutput:
    """A stream that drops what cannot be written any more, and escapes letters that its encoding lacks."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # None is a closed stream (>&-)

    def write(self, text: str) -> int:
        """Write a text if somebody reads it; returns its length."""
        encoding = self._stream.encoding or "utf-8"
        self._attempt(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Pass on what was written, if somebody reads it."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        """Run an action of the stream. If it fails, this and all later text goes to /dev/null."""
        try:
            action(*arguments)
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Write to standard output and error through `TolerantOutput` streams."""
    with contextlib.redirect_stdout(TolerantOutput(sys.stdout)), contextlib.redirect_stderr(TolerantOutput(sys.stderr)):
        yield
