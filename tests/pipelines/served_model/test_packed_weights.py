import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.served_model.loading import fastest_dtype, load_served_model
from pipelines.served_model.packed_weights import PackedLinear, pack_weights


def relative_error(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((values.float() - expected.float()).abs().max() / expected.float().abs().max())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (1, 70, 48)])
def test_a_packed_layer_multiplies_as_the_layer_does(bias: bool, shape: tuple[int, ...]) -> None:
    """Up to half precision, for one row, a few, and a batch of sequences."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 40, bias=bias).to(torch.bfloat16)
    inputs = torch.randn(shape, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert PackedLinear(layer)(inputs).shape == (*shape[:-1], 40)
        assert relative_error(PackedLinear(layer)(inputs), layer(inputs)) < 0.01


def test_a_packed_model_has_the_same_logits(random_llama: Callable[..., Any]) -> None:
    """Every linear layer is replaced, the head tied to the embeddings too, and single precision is left as it is."""
    single = random_llama(50, tie_word_embeddings=True)
    half = copy.deepcopy(single).to(torch.bfloat16)
    tokens = torch.arange(12)[None] % 50
    with torch.inference_mode():
        expected = half(tokens).logits
        pack_weights(half)
        pack_weights(single)
        assert relative_error(half(tokens).logits, expected) < 0.03
    assert not [layer for layer in half.modules() if type(layer) is nn.Linear]
    assert not [layer for layer in single.modules() if isinstance(layer, PackedLinear)]


def test_weights_are_packed_only_where_tokens_are_not_compared(chat_model: Path) -> None:
    """`exact` leaves every layer as PyTorch has it; otherwise half precision is packed."""
    layers = {
        exact: [type(m) for m in load_served_model(str(chat_model), 4, "cpu", exact=exact).model.modules()]
        for exact in (False, True)
    }
    assert PackedLinear not in layers[True]
    assert (PackedLinear in layers[False]) == (fastest_dtype("cpu") == torch.bfloat16)
