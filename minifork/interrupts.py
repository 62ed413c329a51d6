"""Interrupting a process: SIGTERM (preemption) and SIGHUP (a closed terminal) act as Ctrl-C does.

A process can also be made to end with the one that started it.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
PARENT = "MINIFORK_PARENT"  # the environment variable with the number of the process that this one ends with
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process receives when its parent ends
Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt. After the first SIGTERM or SIGHUP both are ignored."""

    def stop(*_: object) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handled({signal.SIGINT: signal.default_int_handler} | dict.fromkeys(STOP_SIGNALS, stop)):
        yield


def end_with_parent() -> None:
    """Make Linux send this process SIGTERM when its parent ends, if the environment variable PARENT has its number."""
    parent = int(os.environ.get(PARENT, "0"))
    if not parent:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before this process could ask for the signal
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold signals back until the block ends, which then raises KeyboardInterrupt; a second Ctrl-C stops at once.

    Yields a function that returns whether a signal was received.
    """
    received: list[int] = []
    previous = signal.getsignal(signal.SIGINT)

    def hold(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, previous)

    with _handled(dict.fromkeys((signal.SIGINT, *STOP_SIGNALS), hold)):
        yield lambda: bool(received)
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handlers: dict[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals in the main thread, the only one that receives them. One that is ignored (nohup) stays ignored."""
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


class Stoppable:
    """Calls in threads that the main thread can stop. Python delivers signals to the main thread only."""

    def __init__(self) -> None:
        self._lock, self._threads, self._stopped = threading.Lock(), set[int](), False

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in this thread; raises KeyboardInterrupt, inside it too, once `stop` was called."""
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            self._threads.add(threading.get_ident())
        try:
            function(*arguments)
        finally:
            with self._lock:
                self._threads.discard(threading.get_ident())

    def stop(self) -> None:
        """Raise KeyboardInterrupt in all calls, in each once it returns from code outside of Python."""
        with self._lock:
            self._stopped = True
            for thread in self._threads:
                raised = ctypes.py_object(KeyboardInterrupt)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
