from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.studies.tiny_chat import (
    Recipe,
    answer_loss,
    batches,
    build_model,
    learning_rate,
    length_tokens,
    train_tokenizer,
)

RECIPE = Recipe(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32, batch_tokens=200)


def examples(count: int, vocab_size: int) -> list[tuple[Any, int]]:
    """Random token sequences whose answers start at token 3."""
    rng = np.random.default_rng(0)
    return [(rng.integers(4, vocab_size, int(n)).astype(np.int32), 3) for n in rng.integers(6, 60, count)]


def test_the_loss_is_the_mean_over_answer_tokens() -> None:
    """Padding of rows, columns and targets changes nothing, against a plain sum one example at a time."""
    tokenizer = train_tokenizer(iter(["rivers and night"] * 4), 280)
    model = build_model(RECIPE, tokenizer).float().eval()
    batch = examples(5, len(tokenizer))
    losses = []
    for ids, start in batch:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.from_numpy(ids)[None].long()).logits[0].float()
        losses.append(
            nn.functional.cross_entropy(logits[start - 1 : -1], torch.from_numpy(ids[start:]).long(), reduction="none")
        )
    mean = torch.cat(losses).mean().item()
    assert answer_loss(model, batch, torch.device("cpu")).item() == pytest.approx(mean, rel=2e-3)
    firsts = torch.stack([loss[0] for loss in losses]).sum().item()
    weighted = (torch.cat(losses).sum().item() + 19 * firsts) / (sum(map(len, losses)) + 19 * len(batch))
    assert answer_loss(model, batch, torch.device("cpu"), 20.0).item() == pytest.approx(weighted, rel=2e-3)


def test_every_example_is_in_one_batch_of_an_epoch() -> None:
    """And the order depends on the seed alone."""
    data = examples(40, 100)
    stream, again = batches(data, RECIPE), batches(data, RECIPE)
    seen: list[int] = []
    while len(seen) < len(data):
        batch = next(stream)
        assert batch == next(again)
        assert len(batch) * 64 <= 200 or len(batch) == 1 or max(len(data[i][0]) for i in batch) <= 32
        seen += batch
    assert sorted(seen) == list(range(40))


def test_lengths_are_named_in_order() -> None:
    """The buckets rise with the length, from the first to the last."""
    names = [length_tokens(RECIPE, n)[0] for n in range(1, RECIPE.max_answer_tokens)]
    assert list(dict.fromkeys(names)) == length_tokens(RECIPE)
    assert length_tokens(Recipe(length_buckets=0), 100) == []


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    """Constant in between."""
    recipe = Recipe(max_tokens=1000, learning_rate=1.0, cooldown=0.4)
    assert learning_rate(0, recipe) == pytest.approx(0.01)
    assert learning_rate(300, recipe) == learning_rate(600, recipe) == 1.0
    assert learning_rate(800, recipe) == pytest.approx(0.5)
    assert learning_rate(1000, recipe) == 0.0
