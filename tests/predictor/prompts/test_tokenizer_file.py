from pathlib import Path

import pytest

from predictor.errors import InputError
from predictor.prompts.tokens import load_tokenizer


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"model": 3}', b"[]"])
def test_a_damaged_tokenizer_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    """Whatever the library says of it."""
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: no tokenizer that can be read") as caught:
        load_tokenizer(file)
    assert "\n" not in str(caught.value)
