"""Tokenizers that come without a tokenizer.json, as that of vicuna-13b does: converted by transformers."""

from tokenizers import Tokenizer

from predictor.errors import InputError


def converted_tokenizer(name: str) -> Tokenizer:
    """Return the fast tokenizer that transformers makes of a folder or hub name, from its tokenizer.model for example.

    Raises:
        InputError: there is none, none that can be converted, or it needs code of its own; one line.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the library raises a dozen unrelated types for one cause
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: no tokenizer.json there or on the hub, and no other tokenizer that transformers reads ({reason})"
        ) from None
    backend: Tokenizer | None = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{name}: transformers has no fast form of its tokenizer; give one with a tokenizer.json")
    return backend
