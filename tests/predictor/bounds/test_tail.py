import numpy as np
import pytest

from predictor.bounds.tail import MAX_TAIL, UNKNOWN_TAIL, tail_index

RNG = np.random.default_rng(20)
# Far above rounding to whole tokens.
SMALLEST = 200.0


def pareto(index: float, size: int) -> np.ndarray:
    """Return lengths of at least 200 tokens with a tail of this index, whole."""
    return np.ceil(SMALLEST * RNG.random(size) ** (-1 / index)).astype(np.int64)


@pytest.mark.parametrize("index", [0.7, 1.0, 2.0, 5.0])
def test_the_index_of_a_tail_is_found(index: float) -> None:
    """With 1,000 draws beyond the start, the standard error is 3 %."""
    assert tail_index([pareto(index, 20_000)[i : i + 1] for i in range(20_000)]) == pytest.approx(index, rel=0.12)


@pytest.mark.parametrize("index", [0.7, 1.0, 2.0])
def test_cut_draws_do_not_shorten_the_tail(index: float) -> None:
    """Half of the long draws are cut at random: taken as complete they would raise the index by half."""
    lengths = pareto(index, 20_000)
    cuts = np.ceil(SMALLEST * RNG.random(20_000) ** (-1 / (0.5 * index))).astype(np.int64)
    is_cut = cuts < lengths
    seen = np.minimum(lengths, cuts)
    found = tail_index([seen[i : i + 1] for i in range(20_000)], [is_cut[i : i + 1] for i in range(20_000)])
    assert found == pytest.approx(index, rel=0.15)
    assert tail_index([seen[i : i + 1] for i in range(20_000)]) > 1.3 * index


def test_units_do_not_change_the_index() -> None:
    """The tail of ten times the lengths has the same index, but for the half token of rounding."""
    draws = [pareto(1.5, 10) for _ in range(500)]
    assert tail_index([10 * each for each in draws]) == pytest.approx(tail_index(draws), rel=0.01)


def test_few_draws_say_little() -> None:
    """Without a tail the index is that of nobody's knowledge, and one prompt's many draws weigh as one."""
    assert tail_index([np.array([5, 7])] * 10) == UNKNOWN_TAIL
    assert tail_index([np.full(30, 8)] * 30) == UNKNOWN_TAIL
    one = [np.full(9, 50), np.arange(100, 140)]
    assert tail_index(one) == pytest.approx(tail_index([*one, *one]), rel=1.0)
    assert tail_index([np.array([1000 + i % 40 // 39]) for i in range(4000)]) == MAX_TAIL


def test_all_cut_is_no_tail() -> None:
    """Draws that were all cut tell no index."""
    lengths = [pareto(1.0, 10) for _ in range(50)]
    assert tail_index(lengths, [np.ones(10, dtype=bool)] * 50) == UNKNOWN_TAIL
