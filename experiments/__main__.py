"""``python -m experiments`` is the ``minifork`` command with all that studies add to it."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command handles it, Ctrl-C ends this without a traceback

from experiments.cli import main  # noqa: E402

sys.exit(main())
