"""A random served model, shared by the tests of all stages."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., Any]:
    """A function that makes a random two-layer Llama, the same each time, with further settings as given."""

    def make(vocab_size: int, **settings: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            **settings,
        )
        return LlamaForCausalLM(config).eval()

    return make
