"""Compile and run the pipeline: `python kubeflow/submit.py experiment=mnist`.

The same as `arcloop pipeline`.
"""

import sys

from arcloop.__main__ import command

if __name__ == "__main__":
    sys.exit(command(["pipeline", *sys.argv[1:]]))
