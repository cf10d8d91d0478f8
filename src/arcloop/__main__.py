"""The command `arcloop`, and `python -m arcloop` where no script is on the path."""

import sys
from collections.abc import Sequence

from arcloop.cli.main import main
from arcloop.pipeline.garbage import leave_to_the_end_of_the_process


def command(argv: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for, in a process of its own; returns the exit code."""
    code = main(argv)
    if code == 0 and "torch.distributed" in sys.modules:  # a launcher may have started this one
        from arcloop.distributed.process_group import leave_process_group

        leave_process_group()
    leave_to_the_end_of_the_process()
    return code


if __name__ == "__main__":
    sys.exit(command())
