import io
import json
from pathlib import Path

import pytest
import sentencepiece

from predictor.errors import InputError
from predictor.records.chats import load_data, token_counter
from predictor.training.slow_tokenizers import converted_tokenizer

TEXTS = ["write about a river", "the river runs by night", "a winter garden", "list the names again and again"]


@pytest.fixture(scope="module")
def like_vicuna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.model and no tokenizer.json, trained as Llama's is."""
    folder = tmp_path_factory.mktemp("vicuna")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4), model_writer=model, vocab_size=320, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": "<unk>", "legacy": False}))
    return folder


def test_a_tokenizer_model_counts_as_sentencepiece_does(like_vicuna: Path) -> None:
    """Of known words, unknown ones, spaces in a row and other scripts; no special token is added."""
    count = token_counter(str(like_vicuna), converted_tokenizer)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(like_vicuna / "tokenizer.model"))
    texts = [*TEXTS, "zebra 42", "two  spaces\n\nand lines", "\u6cb3\u5ddd \U0001f642", ""]
    assert count(texts) == [len(slow.encode(text)) for text in texts]


def test_lmsys_rows_are_counted_with_a_tokenizer_model(like_vicuna: Path, tmp_path: Path) -> None:
    """As the README's command for LMSYS-Chat-1M does with vicuna's."""
    path = tmp_path / "chats.jsonl"
    said = [{"role": "user", "content": "write"}, {"role": "assistant", "content": TEXTS[1]}]
    path.write_text(json.dumps({"conversation_id": "c", "model": "vicuna-13b", "conversation": said}))
    records = load_data(str(path), "vicuna-13b", str(like_vicuna), convert=converted_tokenizer).records
    slow = sentencepiece.SentencePieceProcessor(model_file=str(like_vicuna / "tokenizer.model"))
    assert records.output_lens[0].tolist() == [len(slow.encode(TEXTS[1])) + 1]


def test_a_folder_without_a_tokenizer_is_one_line(like_vicuna: Path, tmp_path: Path) -> None:
    """As is a damaged one."""
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="damaged") as caught:
        token_counter(str(tmp_path), converted_tokenizer)
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").unlink()
    for name, content in (
        ("tokenizer.model", b"no model"),
        ("tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer"}'),
    ):
        with pytest.raises(InputError, match=r"no tokenizer\.json there") as caught:
            token_counter(str(tmp_path), converted_tokenizer)
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"no tokenizer\.json there"):
        token_counter(str(tmp_path), converted_tokenizer)
