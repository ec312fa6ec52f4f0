from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.records.records import SPLITS
from predictor.splits.near_duplicates import NUM_HASHES, minhash_signatures, near_duplicate_clusters
from predictor.splits.shingles import jaccard, normalised, shingles
from predictor.splits.split_audit import count_crossing_pairs, shingle_set
from predictor.splits.splits import FRACTIONS, assign_splits, days_of, split_by_time, split_clusters
from predictor.splits.templates import without_templates

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
    assert count_crossing_pairs(prompts, splits) == 0
    sets = [shingle_set(prompt) for prompt in prompts]
    for i in range(len(prompts)):
        for j in range(i):
            if len(sets[i] & sets[j]) >= 0.85 * len(sets[i] | sets[j]):
                assert splits[i] == splits[j]


def test_unrelated_prompts_are_not_joined() -> None:
    """Otherwise everything would land in one split."""
    assert len(set(near_duplicate_clusters(texts(60, np.random.default_rng(0))).tolist())) == 60


def test_exact_duplicates_share_a_cluster() -> None:
    """Short prompts included, and the same characters composed in another way."""
    assert near_duplicate_clusters(["e\u0301te\u0301", "\u00e9t\u00e9", "ete"]).tolist() == [0, 0, 1]
    assert near_duplicate_clusters(["Hi", "hi ", "no", "a much longer prompt", "Hi"]).tolist() == [0, 0, 1, 2, 0]


def test_split_sizes_follow_the_fractions_and_the_seed_decides() -> None:
    """Within one cluster of the target; another seed gives another assignment."""
    prompts = texts(200, np.random.default_rng(1))
    splits = assign_splits(prompts, 0)
    sizes = [splits.count(name) for name in ("train", "validation", "calibration", "test")]
    np.testing.assert_allclose(sizes, np.asarray(FRACTIONS) * 200, atol=1)
    assert splits == assign_splits(prompts, 0)
    assert splits != assign_splits(prompts, 1)


def variations(size: int, rng: np.random.Generator) -> list[str]:
    """Prompts in families of small changes, some of no change, in several scripts."""
    prompts: list[str] = []
    for text in texts(size, rng):
        words = text.split()
        for _ in range(int(rng.integers(1, 6))):
            words[int(rng.integers(len(words)))] = str(
                rng.choice(["\u0645\u0631\u062d\u0628\u0627", "\u6cb3\u5ddd", "bavex", "\U0001f642"])
            )
            prompts.append(" ".join(words))
    return [*prompts, "Hi", "hi", "Hi!", "\u6cb3", "\u6cb3"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_the_audit_counts_what_comparing_all_pairs_counts(seed: int, threshold: float) -> None:
    """Whatever the splits: nothing is missed and nothing is counted twice."""
    rng = np.random.default_rng(seed)
    prompts = variations(20, rng)
    splits = [str(name) for name in rng.choice(["train", "calibration", "test"], len(prompts))]
    texts_of_splits = sorted({(normalised(prompt), split) for prompt, split in zip(prompts, splits, strict=True)})
    distinct = [(shingle_set(text), split) for text, split in texts_of_splits]
    expected = sum(
        len(left & right) >= threshold * len(left | right)
        for (left, one), (right, other) in combinations(distinct, 2)
        if one != other
    )
    assert count_crossing_pairs(prompts, splits, threshold) == expected


def test_the_audit_finds_what_careless_splits_leak() -> None:
    """It can fail: copies put elsewhere by row number; one split leaks nothing."""
    prompts = [text for text in texts(20, np.random.default_rng(2)) for _ in range(2)]
    assert count_crossing_pairs(prompts, ["train", "test"] * 20) == 20
    assert count_crossing_pairs(prompts, ["train"] * 40) == 0
    assert count_crossing_pairs([], []) == 0


def test_shingles_are_hashed_without_collision() -> None:
    """As many codes as strings, the same similarity, and signatures that estimate it."""
    prompts = variations(20, np.random.default_rng(3))
    signatures = minhash_signatures(prompts, 0)
    errors = []
    for i, j in zip(range(len(prompts)), range(1, len(prompts)), strict=False):
        one, other = shingle_set(prompts[i]), shingle_set(prompts[j])
        exact = len(one & other) / len(one | other)
        assert len(shingles(prompts[i])) == len(one)
        assert jaccard(shingles(prompts[i]), shingles(prompts[j])) == pytest.approx(exact)
        errors.append(float(np.mean(signatures[i] == signatures[j])) - exact)
    assert abs(np.mean(errors)) < 0.02
    assert np.max(np.abs(errors)) < 4.5 * 0.5 / np.sqrt(NUM_HASHES)


def test_large_groups_are_joined_no_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crowded bands go by the estimate, and beyond a limit on comparisons whole: clusters may grow, never break up."""
    rng = np.random.default_rng(4)
    stem = " ".join(rng.choice(WORDS, 16))
    prompts = [f"{stem} {' '.join(rng.choice(WORDS, rng.integers(2, 9)))}" for _ in range(150)]
    monkeypatch.setattr("predictor.splits.near_duplicates.MAX_NEIGHBOURS", 1000)
    expected = near_duplicate_clusters(prompts).tolist()
    assert 1 < len(set(expected)) < 150
    monkeypatch.setattr("predictor.splits.near_duplicates.MAX_NEIGHBOURS", 2)
    sizes = [len(set(expected))]
    for limit in (5_000_000, 10):
        monkeypatch.setattr("predictor.splits.near_duplicates.MAX_COMPARISONS", limit)
        joined = near_duplicate_clusters(prompts).tolist()
        sizes.append(len(set(joined)))
        of = dict(zip(expected, joined, strict=True))
        assert [of[cluster] for cluster in expected] == joined
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] > 1


INSTRUCTION = (
    "You are the desk of a library with four floors. Read what the visitor wrote, decide which of the shelves, the "
    "reading rooms, the workshops or the lost property office has to answer, and write the reply. Keep to "
    "facts, promise nothing, name the opening hours, use plain words, thank for the question, and sign as the desk. "
    "Where nobody can help, say so at once and offer the archive of the city, whose number all at the counter have. "
)


def test_prompts_of_one_template_are_told_apart_by_what_they_ask() -> None:
    """A long instruction before, after or around the message; every split gets some, and none leaks."""
    rng = np.random.default_rng(5)
    messages = texts(60, rng)
    for before, after in ((INSTRUCTION, ""), ("", f"\n{INSTRUCTION}"), (INSTRUCTION, f"\n{INSTRUCTION}")):
        prompts = [f"{before}Message: {message}{after}" for message in messages]
        assert len(set(near_duplicate_clusters(prompts).tolist())) < 60
        rests = without_templates(prompts)
        assert len(set(near_duplicate_clusters(rests).tolist())) == 60
        assert all(message in rest for message, rest in zip(messages, rests, strict=True))
        assert set(assign_splits(prompts, 0)) == set(SPLITS)


def test_two_applications_have_a_template_each() -> None:
    """Among prompts without one, which stay as they are; copies of a message still go together."""
    rng = np.random.default_rng(6)
    messages, plain = texts(30, rng), texts(30, rng)
    other = INSTRUCTION.replace("library", "railway and its many stations")[::-1]
    prompts = [INSTRUCTION + message for message in messages] + [other + message for message in messages] + plain
    rests = without_templates(prompts)
    assert rests[60:] == plain
    assert rests[:30] == rests[30:60] == messages


def test_a_template_with_hardly_anything_in_it_is_no_reason_to_split() -> None:
    """Prompts that differ in a word of a long instruction are near-duplicates."""
    prompts = [f"{INSTRUCTION}Message: {word}" for word in WORDS]
    assert without_templates(prompts) == prompts
    assert len(set(near_duplicate_clusters(without_templates(prompts)).tolist())) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_split_stays_empty_while_another_has_clusters_to_spare(seed: int) -> None:
    """Even where one cluster holds nearly all prompts."""
    clusters = np.asarray([0] * 400 + [1, 2, 3, 4])
    splits = split_clusters(clusters, seed)
    assert set(splits) == set(SPLITS)
    assert len(set(splits[:400])) == 1
    assert set(split_clusters(np.asarray([0, 0, 1]), seed)) < set(SPLITS)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 300), st.floats(0.01, 30.0))
def test_splits_by_time_follow_one_another(seed: int, size: int, num_days: float) -> None:
    """In the order of SPLITS, all of them filled; where there are days enough, no day is in two splits."""
    times = np.random.default_rng(seed).uniform(1.7e9, 1.7e9 + num_days * 86_400, size)
    splits = np.asarray(split_by_time(times.tolist()))
    spans = [(times[splits == name].min(), times[splits == name].max()) for name in SPLITS]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    if num_days > 20 and size > 200:
        days = np.asarray(days_of(times.tolist()))
        assert sum(len(set(days[splits == name])) for name in SPLITS) == len(set(days))


def test_days_have_names() -> None:
    """A date where one is known."""
    assert days_of([1_764_271_830.5, 90_000.0]) == ["2025-11-27", "day 1"]
