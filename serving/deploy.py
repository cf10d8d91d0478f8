"""Deploy a finished run: `python serving/deploy.py run_dir=runs/mnist`.

Equivalent to `arcloop deploy`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["deploy", *sys.argv[1:]]))
