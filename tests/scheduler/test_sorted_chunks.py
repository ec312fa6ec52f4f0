import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.waiting import sorted_chunks
from scheduler.waiting.sorted_chunks import SortedChunks

STEPS = st.lists(st.tuples(st.sampled_from(["add", "add", "take", "remove"]), st.integers(0, 30)), max_size=80)


@settings(deadline=None, max_examples=100)
@given(start=st.sets(st.integers(0, 30)), steps=STEPS)
def test_items_come_in_order(start: set[int], steps: list[tuple[str, int]]) -> None:
    """Against a plain sorted list, in chunks so small that they are split and emptied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_chunks, "LONGEST", 4)
        chunks, plain = SortedChunks([(number,) for number in start]), sorted(start)
        for action, number in steps:
            if action == "add" and number not in plain:
                chunks.add((number,))
                plain = sorted([*plain, number])
            elif action == "take" and plain:
                assert chunks.first == (plain[0],)
                assert chunks.take_first() == (plain.pop(0),)
            elif action == "remove" and number in plain:
                chunks.remove((number,))
                plain.remove(number)
            assert list(chunks) == [(each,) for each in plain]
            assert all(len(chunk) <= 4 for chunk in chunks._chunks)
            assert [chunk[-1] for chunk in chunks._chunks] == chunks._lasts
