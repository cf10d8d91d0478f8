"""Serve a run on this machine: `python serving/serve.py run_dir=runs/mnist`.

Equivalent to `arcloop serve`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["serve", *sys.argv[1:]]))
