"""A tiny random encoder, a random served model, made-up records, built on the spot: no network, no bundled weights."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOPICS = ("story", "poem", "proof", "list", "name", "email", "joke", "essay")
WORDS = ("river", "night", "engine", "lemma", "garden", "ticket", "winter", "signal", "copper", "window", "letter")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_prompts(size: int, rng: np.random.Generator) -> list[str]:
    """Return distinct prompts of a few words to a few lines."""
    prompts = []
    for index in range(size):
        topic = TOPICS[index % len(TOPICS)]
        words = rng.choice(WORDS, int(rng.integers(4, 30)))
        prompts.append(f"Write a {topic} number {index} about {' '.join(words)}")
    return prompts


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer BERT of width 32 and a WordPiece tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    # By hand, since the trainer of the library breaks ties another way each time.
    special, characters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], [*string.ascii_lowercase, *string.digits]
    words = sorted({word.lower() for prompt in make_prompts(8, np.random.default_rng(0)) for word in prompt.split()})
    pieces = [*special, *string.punctuation, *characters, *(f"##{each}" for each in characters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # Some published tokenizer files carry these; a predictor must not inherit them.
    tokenizer.enable_truncation(10)
    tokenizer.enable_padding(length=10)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.set_num_threads(1)  # threads that wait for a busy core make tiny models slow
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def records_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 160 prompts with three draws; the topic decides the length."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("data") / "records.jsonl"
    splits = ["train"] * 8 + ["validation"] * 2 + ["calibration"] * 5 + ["test"] * 5
    with path.open("w") as lines:
        for index, prompt in enumerate(make_prompts(160, rng)):
            draws = np.ceil(rng.lognormal(2.5 + 0.4 * (index % len(TOPICS)), 0.4, 3)).astype(int)
            capped = np.minimum(draws, 200)
            row = {
                "prompt": prompt,
                "prompt_id": f"p{index}",
                "model": "made-up",
                "dataset": "even" if index % 2 else "odd",
                "output_lens": capped.tolist(),
                "is_truncated": (draws > 200).tolist(),
                "split": splits[(index // 8) % len(splits)],
            }
            lines.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="session")
def run_folder(tiny_encoder: Path, records_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    from pipelines.cli import main

    out = tmp_path_factory.mktemp("runs") / "run"
    settings = "--epochs 2 --batch-size 16 --max-prompt-tokens 16 --max-length 256 --num-bins 16 --head-lr 0.01"
    argv = ["train", "--data", str(records_file), "--out", str(out), "--encoder", str(tiny_encoder)]
    assert main([*argv, *settings.split(), "--no-progress", "--accelerator", "cpu"]) == 0
    return out


@pytest.fixture(scope="session")
def exports(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both precisions of that run."""
    from pipelines.cli import main

    folders = {name: tmp_path_factory.mktemp("exports") / name for name in ("fp32", "int8")}
    for precision, folder in folders.items():
        assert main(["export", str(run_folder), "--out", str(folder), "--precision", precision, "--no-progress"]) == 0
    return folders


@pytest.fixture(scope="session")
def random_llama() -> Callable[..., Any]:
    """A function that makes a random Llama, of two layers unless told otherwise, the same each time."""

    def make(vocab_size: int, **settings: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        usual = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        }
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**usual, **settings})).eval()

    return make


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
