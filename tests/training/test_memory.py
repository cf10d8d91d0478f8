"""How a training process takes memory, seen by the pages it has to be given."""

import platform
import subprocess
import sys

import pytest

_FREED_AND_TAKEN = """
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from arcloop.training.memory import keep_memory_between_steps
    keep_memory_between_steps()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
tensors = [np.ones(6 << 20, np.uint8) for _ in range(4)]
del tensors
before = faults()
for _ in range(10):
    tensors = [np.ones(6 << 20, np.uint8) for _ in range(4)]
    del tensors
print(faults() - before)
"""


def faults(way, **environment):
    command = [sys.executable, "-c", _FREED_AND_TAKEN, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True,
                          env={"PATH": "", **environment})  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_what_a_step_frees_is_there_for_the_next():
    left, kept = faults("left"), faults("kept")
    assert left > 10 * kept
    asked = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    assert faults("kept", **asked) > left / 2, "what the environment asks for stays"
