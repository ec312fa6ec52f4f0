import numpy as np
import pytest

SIZE = 700


@pytest.fixture(scope="module")
def logits() -> "np.ndarray":
    """One row of logits, peaked enough for top_p to bite."""
    return (3 * np.random.default_rng(0).standard_normal(SIZE)).astype(np.float32)


def reference(logits: "np.ndarray", temperature: float, top_k: int, top_p: float) -> "np.ndarray":
    """The probabilities as transformers' own processors make them."""
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    return scores.double().softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 20, 1.0), (0.8, 0, 0.95), (5.0, 0, 0.99), (1.3, 50, 0.6), (1.0, 0, 0.05)],
)
def test_draws_follow_the_settings(logits: "np.ndarray", temperature: float, top_k: int, top_p: float) -> None:
    """Frequencies of 60,000 draws are those of transformers' processors; what they exclude never comes."""
    import torch

    from scheduler.integrations.transformers_sampling import Sampler

    sampler = Sampler(temperature, top_k, top_p, seed=1, device=torch.device("cpu"))
    rows = torch.from_numpy(logits).expand(2000, SIZE)
    drawn = np.concatenate([sampler.draw(rows.clone()).numpy() for _ in range(30)])
    expected = reference(logits, temperature, top_k, top_p)
    counts = np.bincount(drawn, minlength=SIZE)
    assert counts[expected == 0].sum() == 0
    error = (counts - expected * len(drawn)) / np.sqrt(np.maximum(expected * len(drawn), 1))
    assert np.abs(error).max() < 5.5


def test_few_tokens_are_sorted(logits: "np.ndarray") -> None:
    """Only as many as hold top_p: a whole vocabulary is not sorted for a peaked distribution."""
    import torch

    from scheduler.integrations.transformers_sampling import CHUNK, likeliest

    rows = torch.from_numpy(logits)[None]
    assert likeliest(rows, 0, 0.9)[0].shape[1] == CHUNK
    assert likeliest(torch.zeros(1, SIZE), 0, 0.9)[0].shape[1] == SIZE


def test_a_seed_repeats_the_draws(logits: "np.ndarray") -> None:
    """The same seed, the same tokens; another seed, others."""
    import torch

    from scheduler.integrations.transformers_sampling import Sampler

    rows = torch.from_numpy(logits).expand(100, SIZE)
    draws = [Sampler(1.0, 0, 1.0, seed, torch.device("cpu")).draw(rows.clone()).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
