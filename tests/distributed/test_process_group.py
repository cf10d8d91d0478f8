from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from arcloop.distributed.process_group import ALONE, Share


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 7))
def test_parts_cover_each_row_once_in_order_and_are_cut_between_units(total, unit, world):
    parts = []
    for rank in range(world):
        share = Share()
        share.rank, share.world = rank, world
        parts.append(share.part(total, unit))
    assert list(chain(*parts)) == list(range(total))
    assert all(part.start % unit == 0 or part.start == total for part in parts)
    units = [-(-len(part) // unit) for part in parts]
    assert max(units) - min(units) <= 1


def test_the_only_process_does_all_and_hears_itself():
    assert ALONE.part(7, 3) == range(7)
    assert ALONE.tell(lambda: "x") == "x"
    assert ALONE.gather(lambda: "x") == ["x"]
