import gc

import pytest

from arcloop.pipeline.garbage import left_uncollected


@pytest.fixture
def collecting():
    before = gc.isenabled()
    yield
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_it_collects_afterwards_as_it_did_before(collecting, enabled):
    (gc.enable if enabled else gc.disable)()
    with left_uncollected():
        assert not gc.isenabled()
    assert gc.isenabled() is enabled
    with pytest.raises(ZeroDivisionError), left_uncollected():
        1 / 0  # noqa: B018
    assert gc.isenabled() is enabled
