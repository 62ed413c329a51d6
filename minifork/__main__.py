"""``python -m minifork`` runs the core commands; the installed command `minifork` is ``python -m experiments``."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command handles it, Ctrl-C ends this without a traceback

from minifork.cli import main  # noqa: E402

sys.exit(main())
