from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def small_and_repeatable() -> Iterator[None]:
    """Use one thread: small networks are faster, and tests may run in parallel."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
