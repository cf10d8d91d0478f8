"""The command `arcloop`; also `python -m arcloop`."""

import gc
import sys
from collections.abc import Sequence

from arcloop.cli.main import main


def command(argv: Sequence[str] | None = None) -> int:
    """Run the command line as the only task of this process and return the exit code."""
    code = main(argv)
    if code == 0 and "torch.distributed" in sys.modules:  # torchrun may have started this process
        from arcloop.distributed.process_group import leave_process_group

        leave_process_group()
    # At exit, the interpreter runs the garbage collector, which skips frozen objects.
    gc.freeze()
    return code


if __name__ == "__main__":
    sys.exit(command())
