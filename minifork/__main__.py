"""``python -m minifork`` runs the core commands."""

import sys

from minifork.cli import main

sys.exit(main())
