"""Submit the pipeline whenever the data change.

The same as `arcloop trigger`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["trigger", *sys.argv[1:]]))
