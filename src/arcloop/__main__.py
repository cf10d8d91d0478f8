"""`python -m arcloop`: the command, where no script is on the path."""

import sys

from arcloop.cli import main

sys.exit(main())
