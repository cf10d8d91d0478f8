"""Manage the versions of a model store: `python serving/versions.py list run_dir=runs/mnist`.

Equivalent to `arcloop versions`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["versions", *sys.argv[1:]]))
