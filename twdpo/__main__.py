"""`python -m twdpo`, for launchers that start modules."""

import sys

from twdpo.cli import main

sys.exit(main())
