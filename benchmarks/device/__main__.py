"""Runs the suite for a GPU."""

import sys

from .suite import main

sys.exit(main())
