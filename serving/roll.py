"""Replace the model of a running TorchServe.

The same as `arcloop roll`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["roll", *sys.argv[1:]]))
