from pathlib import Path

import numpy as np
import pytest
import torch

from predictor.checkpoint import load_encoder
from predictor.data import shuffled_batches
from predictor.distribution import survival_from_hazard_logits
from predictor.errors import InputError
from predictor.network import HazardNetwork, network_survival
from predictor.prompt_tokens import encode_prompts, keep_head_and_tail, pad


def test_the_network_starts_at_the_marginal_distribution(tiny_encoder: Path) -> None:
    """Whatever the prompt."""
    encoder, _ = load_encoder(str(tiny_encoder))
    network = HazardNetwork(encoder, 6)
    hazard_logits = np.linspace(-3, 1, 6)
    network.start_at(hazard_logits)
    survival = network_survival(network, [[2, 5, 3], [2, 9, 9, 8, 3]], 0, 6)
    np.testing.assert_allclose(survival, survival_from_hazard_logits(np.tile(hazard_logits, (2, 1))), atol=1e-6)


def test_padding_does_not_change_a_prediction(tiny_encoder: Path) -> None:
    """Mean pooling skips it, and so does attention."""
    encoder, _ = load_encoder(str(tiny_encoder))
    network = HazardNetwork(encoder, 6).eval()
    torch.nn.init.normal_(network.head[-1].weight)
    alone, padded = (tuple(map(torch.from_numpy, pad(ids, 0))) for ids in ([[2, 5, 3]], [[2, 5, 3], [2] + [7] * 20]))
    with torch.no_grad():
        torch.testing.assert_close(network(*padded)[:1], network(*alone), atol=1e-5, rtol=1e-5)


def test_unfreezing_takes_the_last_layers(tiny_encoder: Path) -> None:
    """The head always trains; with none, nothing of the encoder does."""
    encoder, _ = load_encoder(str(tiny_encoder))
    network = HazardNetwork(encoder, 6)
    network.unfreeze_last(1)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("head.", "encoder.encoder.layer.1.")) for name in trained)
    assert any(name.startswith("encoder.") for name in trained)
    network.unfreeze_last(0)
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


def test_a_tokenizer_file_with_truncation_and_padding_loses_both(tiny_encoder: Path) -> None:
    """The fixture's file would cut and pad to ten tokens."""
    _, tokenizer = load_encoder(str(tiny_encoder))
    short, long = encode_prompts(tokenizer, ["river", "river night " * 30], 24)
    assert len(short) < 10
    assert len(long) == 24
    assert (long[0], long[-1]) == (2, 3)


@pytest.mark.parametrize(("size", "limit"), [(3, 4), (4, 4), (9, 4), (9, 5)])
def test_head_and_tail_stay(size: int, limit: int) -> None:
    """The middle of a long prompt goes."""
    kept = keep_head_and_tail(range(size), limit)
    assert len(kept) == min(size, limit)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, size - 1)


def test_each_prompt_is_in_one_batch_an_epoch() -> None:
    """Batches hold prompts of similar length, in an order the generator decides."""
    lengths = np.random.default_rng(0).integers(3, 100, 500)
    token_ids = [[1] * int(length) for length in lengths]
    batches = shuffled_batches(token_ids, 16, np.random.default_rng(5))
    assert sorted(index for batch in batches for index in batch) == list(range(500))
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 15
    assert batches == shuffled_batches(token_ids, 16, np.random.default_rng(5))
    assert batches != shuffled_batches(token_ids, 16, np.random.default_rng(6))


def test_an_encoder_that_is_nowhere_is_named() -> None:
    """Also where none is given and none is bundled."""
    with pytest.raises(InputError, match="neither an encoder folder nor had from the hub"):
        load_encoder("./no/such/encoder")
