"""The command `arcloop`, and `python -m arcloop` where no script is on the path."""

import sys

from arcloop.cli import main
from arcloop.garbage import leave_to_the_end_of_the_process


def command() -> int:
    """Carry out what the command line asks for, in a process of its own; returns the exit code."""
    code = main()
    if code == 0 and "torch.distributed" in sys.modules:  # a launcher may have started this one
        from arcloop.processes import leave_group

        leave_group()
    leave_to_the_end_of_the_process()
    return code


if __name__ == "__main__":
    sys.exit(command())
