"""Standard output and error that cannot end a run: whoever read them may be gone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Forgiving:
    """A stream that forgets what cannot be written any more, and escapes what its encoding does not have."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write a text as far as possible; returns its length."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError:
            self._forget()
        return len(text)

    def flush(self) -> None:
        """Pass on what was written, if somebody is there."""
        try:
            self._stream.flush()
        except OSError:
            self._forget()

    def _forget(self) -> None:
        """Send what is still buffered, and all that follows, nowhere: else Python complains about it at the end."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Write to standard output and error through `Forgiving` streams."""
    with contextlib.redirect_stdout(Forgiving(sys.stdout)), contextlib.redirect_stderr(Forgiving(sys.stderr)):
        yield
