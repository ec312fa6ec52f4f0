from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.due import DueRequests

steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(0, 9)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.integers(0, 9)),
    ),
    max_size=60,
)


@given(steps=steps)
def test_what_is_due_comes_once_and_at_its_last_time(steps: list[tuple[str, int, int]]) -> None:
    """Against a plain table of times, whatever is put, put again, dropped and popped in any order."""
    due, table = DueRequests(), dict[int, int]()
    for action, index, clock in steps:
        if action == "put":
            due.put(index, clock)
            table[index] = clock
        elif action == "drop" and index in table:
            due.drop(index)
            del table[index]
        elif action == "pop":
            taken = due.pop(clock)
            assert sorted(taken) == sorted(index for index, then in table.items() if then <= clock)
            table = {index: then for index, then in table.items() if then > clock}


def test_nothing_is_kept_of_iterations_that_are_over() -> None:
    """A request that is put off again and again leaves no trace."""
    due = DueRequests()
    for clock in range(1000):
        due.put(0, clock + 3)
        assert due.pop(clock) == []
    assert len(due._groups) == len(due._clocks) == 3
