"""Replace the model of a running TorchServe: `python serving/roll.py run_dir=runs/mnist`.

Equivalent to `arcloop roll`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["roll", *sys.argv[1:]]))
