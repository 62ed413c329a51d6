"""Being stopped: SIGTERM (preemption) and SIGHUP (a closed terminal) mean what Ctrl-C means."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

QUIET = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt, once; further ones are ignored, as the process is stopping."""

    def stop(*_: object) -> None:
        for number in QUIET:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handled(dict.fromkeys(QUIET, stop)):
        yield


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold signals back until the block ends, which then raises KeyboardInterrupt; a second Ctrl-C stops at once.

    Yields a function that says whether one came.
    """
    came: list[int] = []
    previous = signal.getsignal(signal.SIGINT)

    def hold(number: int, _: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, previous)

    with _handled(dict.fromkeys((signal.SIGINT, *QUIET), hold)):
        yield lambda: bool(came)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals in the main thread, which alone sees them; one that is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
