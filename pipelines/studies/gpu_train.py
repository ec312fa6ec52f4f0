"""Training of a chat model on packed rows: the recipe of `pipelines.studies.tiny_chat` for sizes that want a GPU."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from pipelines.files import atomic_file
from pipelines.studies.packed_rows import Example, answer_loss_of_rows, packed_batches, packed_loss
from pipelines.studies.tiny_chat import (
    Recipe,
    build_model,
    encode,
    learning_rate,
    length_tokens,
    load_pairs,
    save,
    train_tokenizer,
)


@dataclass(frozen=True, slots=True)
class PackedRecipe:
    """A recipe, and the shape of its batches; `batch_tokens` and `plan_copies` of the recipe are as in tiny-chat."""

    recipe: Recipe
    num_rows: int = 48
    row_tokens: int = 1024
    num_tokenizer_texts: int = 20_000


def train_packed(data: Path, out: Path, packed: PackedRecipe, minutes: float, *, compiled: bool) -> bool:
    """Train for at most so many minutes; return whether the model in `out/model` is finished.

    Progress is kept in `out/progress.pt`; the forward pass runs in bfloat16, `compiled` if asked for.
    """
    recipe = packed.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    tokenizer, examples = _prepare(data, out, packed)
    torch.manual_seed(recipe.seed)
    model: Any = build_model(recipe, tokenizer)
    model.to(device).train()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{millions:.0f}M parameters, {sum(len(ids) for ids, _ in examples):,} tokens an epoch", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    step, tokens = _continue(out / "progress.pt", model, optimizer, device)
    loss_of_rows: Any = torch.compile(answer_loss_of_rows, dynamic=False) if compiled else answer_loss_of_rows
    started, before, skip = time.monotonic(), tokens, step
    batches = packed_batches(examples, packed.num_rows, packed.row_tokens, recipe.plan_weight, recipe.seed)
    for index, batch in enumerate(batches):
        if tokens >= recipe.max_tokens or time.monotonic() - started > minutes * 60:
            break
        if index < skip:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(tokens, recipe)
        loss = packed_loss(model, batch, device, loss_of_rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + batch.num_tokens
        if step % 50 == 0:
            rate = (tokens - before) / (time.monotonic() - started)
            print(f"step {step} tokens {tokens:,} loss {loss.item():.3f} {rate:,.0f} tokens/s", flush=True)
    if tokens < recipe.max_tokens:
        state = {"step": step, "tokens": tokens, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic_file(out / "progress.pt") as aside:
            torch.save(state, aside)
        return False
    save(model, tokenizer, out / "model", recipe)
    return True


def _prepare(data: Path, out: Path, packed: PackedRecipe) -> tuple[PreTrainedTokenizerFast, list[Example]]:
    """Return the tokenizer, trained once, and the examples that fit a row."""
    recipe = packed.recipe
    pairs, _ = load_pairs(data, recipe)
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        texts = (text for pair in pairs[: packed.num_tokenizer_texts] for text in pair)
        tokenizer = train_tokenizer(texts, recipe.vocab_size)
        tokenizer.add_special_tokens({"additional_special_tokens": length_tokens(recipe)})
        tokenizer.save_pretrained(out)
    return tokenizer, [e for e in encode(pairs, tokenizer, recipe) if len(e[0]) <= packed.row_tokens]


def _continue(path: Path, model: Any, optimizer: Any, device: torch.device) -> tuple[int, int]:
    """Load an interrupted training; return its steps and tokens."""
    if not path.exists():
        return 0, 0
    progress = torch.load(path, weights_only=True, map_location=device)
    model.load_state_dict(progress["model"])
    optimizer.load_state_dict(progress["optimizer"])
    return int(progress["step"]), int(progress["tokens"])
