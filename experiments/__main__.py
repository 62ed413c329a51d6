"""``python -m experiments`` is the ``minifork`` command with all that studies add to it."""

import sys

from experiments.cli import main

sys.exit(main())
