from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from arcloop.distributed.process_group import SINGLE_PROCESS, ProcessGroup, current_process_group


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 7))
def test_shards_cover_each_row_once_in_order_with_boundaries_between_units(
    num_rows, unit, world_size
):
    shards = [ProcessGroup(rank, world_size).shard(num_rows, unit) for rank in range(world_size)]
    assert list(chain(*shards)) == list(range(num_rows))
    assert all(shard.start % unit == 0 or shard.start == num_rows for shard in shards)
    units = [-(-len(shard) // unit) for shard in shards]
    assert max(units) - min(units) <= 1


def test_a_single_process_has_all_rows_and_receives_its_own_objects():
    assert current_process_group() is SINGLE_PROCESS
    assert SINGLE_PROCESS.shard(7, 3) == range(7)
    assert SINGLE_PROCESS.broadcast(lambda: "x") == "x"
    assert SINGLE_PROCESS.gather(lambda: "x") == ["x"]
    SINGLE_PROCESS.barrier()
