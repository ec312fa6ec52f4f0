import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import survival_from_hazard_logits
from predictor.errors import InputError
from predictor.prompts.context import RequestContext
from predictor.prompts.features import NAMES
from predictor.prompts.tokens import encode_prompts, keep_head_and_tail
from predictor.spec import PredictorSpec
from predictor.training.checkpoint import load_encoder, load_for_models, load_predictor, save_predictor
from predictor.training.data import shuffled_batches
from predictor.training.network import HazardNetwork, NetworkShape, TorchLengthPredictor, network_survivals

BINS = LengthBins.log_spaced(64, 6)
TERMS = (5, 7)


def make_network(folder: Path, heads: tuple[str, ...] = ("hazard",)) -> tuple[HazardNetwork, Tokenizer]:
    """A network for two served models, with heads that tell prompts apart."""
    encoder, tokenizer = load_encoder(str(folder))
    torch.manual_seed(0)
    network = HazardNetwork(encoder, BINS, NetworkShape(2, len(TERMS), 3, 8, heads)).eval()
    for head in network.heads:
        torch.nn.init.normal_(head.residual)
    return network, tokenizer


def test_the_network_starts_at_the_marginal_distribution(tiny_encoder: Path) -> None:
    """Whatever the prompt, for each served model its own."""
    network, tokenizer = make_network(tiny_encoder)
    hazard_logits = np.linspace(-3, 1, 12).reshape(2, 6)
    torch.nn.init.zeros_(network.heads[0].residual)
    network.heads[0].start_at(hazard_logits)
    survivals = network_survivals(network, encode_prompts(tokenizer, ["river", "night lemma"], 8, TERMS), 0, 6)
    np.testing.assert_allclose(survivals, survival_from_hazard_logits(np.stack([hazard_logits] * 2)), atol=1e-6)


@pytest.mark.parametrize("heads", [("hazard",), ("hazard", "mixture")])
def test_padding_does_not_change_a_prediction(tiny_encoder: Path, heads: tuple[str, ...]) -> None:
    """Mean pooling skips it, and so does attention; served models differ."""
    network, tokenizer = make_network(tiny_encoder, heads)
    inputs = encode_prompts(tokenizer, ["river night", "river night " * 20], 30, TERMS)
    alone = network_survivals(network, inputs.select([0]), 0, 6)
    padded = network_survivals(network, inputs, 0, 6)
    np.testing.assert_allclose(padded[:1], alone, atol=1e-5)
    assert np.abs(padded[0] - padded[1]).max() > 1e-3
    assert np.abs(padded[:, 0] - padded[:, 1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["hazard", "mixture"])
def test_a_length_asked_for_moves_the_distribution_towards_it(tiny_encoder: Path, kind: str) -> None:
    """A head that keeps to it shifts the median; one with no such length in the request is left as it was."""
    network, tokenizer = make_network(tiny_encoder, (kind,))
    inputs = encode_prompts(tokenizer, ["river night", "river night in 3 words", "river night in 40 words"], 30, TERMS)
    before = network_survivals(network, inputs, 0, 6)
    with torch.no_grad():
        network.heads[0].obeying.bias.copy_(torch.tensor([9.0, 0.0] if kind == "mixture" else [-8.0] * 3 + [8.0] * 4))
    after = network_survivals(network, inputs, 0, 6)
    np.testing.assert_array_equal(after[0], before[0])
    medians = [[np.sum(row > 0.5) for row in survivals[:, 0]] for survivals in (before, after)]
    assert medians[1][1] < medians[1][2]
    assert np.abs(after[1:] - before[1:]).max() > 0.05


def test_a_predictor_reads_the_features_that_it_was_made_with(tiny_encoder: Path, tmp_path: Path) -> None:
    """One of an older version goes on as it was; a context then changes nothing."""
    encoder, tokenizer = load_encoder(str(tiny_encoder))
    shape = NetworkShape(1, len(TERMS), 3, 8, ("hazard",), len(NAMES))
    network = HazardNetwork(encoder, BINS, shape)
    torch.nn.init.normal_(network.heads[0].residual)
    spec = PredictorSpec(BINS, 8, 0, ("a",), "a", TERMS, {}, {}, num_features=len(NAMES))
    save_predictor(tmp_path, network, tokenizer, spec)
    file = tmp_path / "predictor.json"
    stated = json.loads(file.read_text())
    del stated["num_features"], stated["network"]["num_features"]
    file.write_text(json.dumps(stated))
    loaded = load_predictor(tmp_path)
    assert loaded.spec.num_features == len(NAMES)
    contexts = [RequestContext(num_tools=3)]
    np.testing.assert_array_equal(loaded.survivals(["river"]), loaded.survivals(["river"], contexts))


def test_what_a_request_says_beside_its_prompt_reaches_the_network(tiny_encoder: Path) -> None:
    """A system prompt that asks for a length, tools and the rest change the survival."""
    network, tokenizer = make_network(tiny_encoder)
    spec = PredictorSpec(BINS, 8, 0, ("a", "b"), "a", TERMS, {}, {})
    length_predictor = TorchLengthPredictor(network, tokenizer, spec)
    contexts = [None, RequestContext(num_tools=3), RequestContext(system_prompt="Answer in one word.")]
    survivals = length_predictor.survivals(["river"] * 3, contexts)
    assert len(np.unique(survivals.reshape(3, -1), axis=0)) == 3
    np.testing.assert_allclose(survivals[:1], length_predictor.survivals(["river"]), atol=1e-6)
    with pytest.raises(InputError, match="contexts: 3 for 1 prompts"):
        length_predictor.survivals(["river"], contexts)


def test_a_network_for_other_served_models_keeps_what_it_knows(tiny_encoder: Path, tmp_path: Path) -> None:
    """A new served model starts as the average of the known ones."""
    network, tokenizer = make_network(tiny_encoder)
    spec = PredictorSpec(BINS, 8, 0, ("a", "b"), "a", TERMS, {}, {})
    save_predictor(tmp_path, network, tokenizer, spec)
    before = TorchLengthPredictor(network, tokenizer, spec)
    after = load_for_models(tmp_path, ("b", "new"), 0.0)
    prompts = ["river night", "a garden"]
    np.testing.assert_allclose(after.survivals(prompts)[:, 0], before.survival(prompts, "b"), atol=1e-6)
    expected = network.heads[0].embedding.mean(dim=0)
    torch.testing.assert_close(after.network.heads[0].embedding[1], expected)
    assert after.spec.models == ("b", "new")


def test_unfreezing_takes_the_last_layers(tiny_encoder: Path) -> None:
    """The head always trains; with none, nothing of the encoder does."""
    network, _ = make_network(tiny_encoder)
    network.unfreeze_last(1)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("heads.", "encoder.encoder.layer.1.")) for name in trained)
    assert any(name.startswith("encoder.") for name in trained)
    network.unfreeze_last(None)
    trained = {name for name, parameter in network.encoder.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("embeddings.") for name in trained)
    assert any(name.startswith("encoder.layer.0.") for name in trained)
    network.unfreeze_last(0)
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


def test_a_tokenizer_file_with_truncation_and_padding_loses_both(tiny_encoder: Path) -> None:
    """The fixture's file would cut and pad to ten tokens."""
    _, tokenizer = load_encoder(str(tiny_encoder))
    short, long = encode_prompts(tokenizer, ["river", "river night " * 30], 24, ()).token_ids
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


def test_the_encoder_of_a_run_is_that_of_its_predictor(run_folder: Path) -> None:
    """As `--init` takes either folder, so does `--encoder`."""
    (one, first), (other, second) = load_encoder(str(run_folder)), load_encoder(str(run_folder / "predictor"))
    assert first.to_str() == second.to_str()
    for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right)


def test_an_encoder_that_is_nowhere_is_named() -> None:
    """Also where none is given and none is bundled."""
    with pytest.raises(InputError, match="neither an encoder folder nor available from the hub"):
        load_encoder("./no/such/encoder")
