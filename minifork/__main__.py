"""``python -m minifork`` is the ``minifork`` command."""

import sys

from minifork.cli import main

sys.exit(main())
