import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.splits import FRACTIONS, assign_splits, near_duplicate_clusters, shingles

WORDS = [f"{a}{b}" for a in ("ba", "ko", "ri", "mu", "ze", "lo", "ta") for b in ("nar", "dil", "vex", "som", "pit")]


def texts(size: int, rng: np.random.Generator) -> list[str]:
    """Unrelated prompts of 20 to 40 words."""
    return [" ".join(rng.choice(WORDS, rng.integers(20, 40))) for _ in range(size)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_no_near_duplicate_pair_crosses_a_split(seed: int) -> None:
    """Copies that differ in case, spacing or one word stay with their original."""
    rng = np.random.default_rng(seed)
    originals = texts(30, rng)
    changes = (str.upper, lambda text: text.replace(" ", "  "), lambda text: text + " yes")
    prompts = originals + [changes[i % 3](text) for i, text in enumerate(originals)]
    splits = assign_splits(prompts, seed)
    sets = [shingles(prompt) for prompt in prompts]
    for i in range(len(prompts)):
        for j in range(i):
            if len(sets[i] & sets[j]) >= 0.85 * len(sets[i] | sets[j]):
                assert splits[i] == splits[j]


def test_unrelated_prompts_are_not_joined() -> None:
    """Otherwise everything would land in one split."""
    assert len(set(near_duplicate_clusters(texts(60, np.random.default_rng(0))).tolist())) == 60


def test_exact_duplicates_share_a_cluster() -> None:
    """Short prompts included."""
    assert near_duplicate_clusters(["Hi", "hi ", "no", "a much longer prompt", "Hi"]).tolist() == [0, 0, 1, 2, 0]


def test_split_sizes_follow_the_fractions_and_the_seed_decides() -> None:
    """Within one cluster of the target; another seed gives another assignment."""
    prompts = texts(200, np.random.default_rng(1))
    splits = assign_splits(prompts, 0)
    sizes = [splits.count(name) for name in ("train", "validation", "calibration", "test")]
    np.testing.assert_allclose(sizes, np.asarray(FRACTIONS) * 200, atol=1)
    assert splits == assign_splits(prompts, 0)
    assert splits != assign_splits(prompts, 1)
