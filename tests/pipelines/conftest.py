"""A random served model, shared by the tests of all stages."""

from collections.abc import Callable
from pathlib import Path
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


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def chat_model(random_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama that samples, and a byte-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("served") / "random-chat"
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    model = random_llama(len(tokenizer), max_position_embeddings=256, **ids)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.8, top_p=0.95, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
