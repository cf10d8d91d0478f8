"""List, roll back and prune the versions of a model store.

The same as `arcloop versions`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["versions", *sys.argv[1:]]))
