"""Rebuild `checkpoints/tiny-chat`: a small Llama-architecture chat model trained from scratch.

    python -m pipelines.studies.tiny_chat --data ../shared/data/chat_pairs.parquet --out runs/tiny-chat

It is a stand-in for a served model on machines without a network. The run folder holds the progress
(`progress.pt`, `loss.csv`); a second call with the same options continues from there. The finished
model, tokenizer and generation settings are in `OUT/model`.
"""

import argparse
import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipelines.memory import keep_freed_memory

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|assistant|>' if m['role'] == 'assistant' else '<|user|>' }}{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights; saved as `recipe.json` beside them."""

    vocab_size: int = 8192
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 768
    max_prompt_tokens: int = 128
    """Longer prompts keep their first tokens."""
    max_answer_tokens: int = 384
    """Longer answers are left out: a cut answer would teach the model never to end."""
    length_spread: float = 0.35
    """An answer stays if |log(length / median length of its prompt)| is at most this: the pairs come from
    133 models, and their mixture would make length look random given the prompt."""
    code_share: float = 0.5
    """Share kept of the answers to programming sets, so that half of what is left is ordinary chat."""
    length_buckets: int = 8
    """The answer starts with one of so many tokens that name the length to come (0: none). So small a model ends its
    answers almost without memory of the prompt; choosing the length first makes it depend on the prompt."""
    plan_weight: float = 20.0
    """Weight of that first token in the loss: it is one among hundreds."""
    plan_copies: int = 1
    """How often each prompt is also seen with nothing but its length token: cheap, as there is no answer to read."""
    batch_tokens: int = 6144
    max_tokens: int = 14_000_000
    """Tokens to train on, padding left out."""
    learning_rate: float = 2e-3
    cooldown: float = 0.4
    """Last part of the training in which the learning rate falls linearly to zero."""
    seed: int = 0


def is_held_out(prompt: str) -> bool:
    """Return whether a prompt is in the 5 % never trained on (by hash, so by text alone)."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 13


def load_pairs(path: Path, recipe: Recipe) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the (prompt, answer) pairs to train on, and those of held-out prompts."""
    rows = pq.read_table(path, columns=["prompt", "response", "source"]).to_pylist()
    lengths: dict[str, list[int]] = {}
    for row in rows:
        lengths.setdefault(row["prompt"], []).append(len(row["response"]) + 1)
    median = {prompt: float(np.median(n)) for prompt, n in lengths.items()}
    rng = np.random.default_rng(recipe.seed)
    pairs: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for row in rows:
        prompt, answer, source = row["prompt"], row["response"].strip(), row["source"]
        is_code = source.startswith("castillo") and source != "castillo-DollyDataset"
        if not answer or (is_code and rng.random() > recipe.code_share):
            continue
        if abs(math.log((len(answer) + 1) / median[prompt])) <= recipe.length_spread:
            (held_out if is_held_out(prompt) else pairs).append((prompt, answer))
    return pairs, held_out


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the chat template, trained on `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, additional_special_tokens=[USER, ASSISTANT]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(
    pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> list[tuple[np.ndarray, int]]:
    """Return (token ids, index of the first answer token) for every pair short enough to keep."""
    user, assistant, end = (tokenizer.convert_tokens_to_ids(token) for token in (USER, ASSISTANT, END))
    prompts = tokenizer([p for p, _ in pairs], add_special_tokens=False)["input_ids"]
    answers = tokenizer([a for _, a in pairs], add_special_tokens=False)["input_ids"]
    examples = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if len(answer) < recipe.max_answer_tokens:
            head = [user, *prompt[: recipe.max_prompt_tokens], end, assistant]
            plan = [tokenizer.convert_tokens_to_ids(token) for token in length_tokens(recipe, len(answer))]
            examples.append((np.array([*head, *plan, *answer, end], dtype=np.int32), len(head)))
            examples += [(np.array([*head, *plan], dtype=np.int32), len(head))] * (recipe.plan_copies if plan else 0)
    return examples


def length_tokens(recipe: Recipe, num_tokens: int | None = None) -> list[str]:
    """Return the token that names a length, in buckets of equal width on a log scale; all of them without a length."""
    if num_tokens is None:
        return [f"<|length-{bucket}|>" for bucket in range(recipe.length_buckets)]
    share = math.log(max(num_tokens, 8) / 8) / math.log(recipe.max_answer_tokens / 8)
    return length_tokens(recipe)[min(int(share * recipe.length_buckets), recipe.length_buckets - 1) :][:1]


def batches(examples: list[tuple[np.ndarray, int]], recipe: Recipe) -> Iterator[list[int]]:
    """Yield index lists of about `batch_tokens` padded tokens for ever; the order depends on the seed alone."""
    lengths = np.array([padded(len(ids)) for ids, _ in examples])
    for epoch in range(1_000_000):
        rng = np.random.default_rng([recipe.seed, epoch])
        order = np.lexsort((rng.random(len(lengths)), lengths))
        groups: list[list[int]] = [[]]
        for i in order:
            if groups[-1] and (len(groups[-1]) + 1) * lengths[i] > recipe.batch_tokens:
                groups.append([])
            groups[-1].append(int(i))
        for g in rng.permutation(len(groups)):
            yield groups[g]


def padded(size: int, step: int = 32) -> int:
    """Return `size` rounded up: on a CPU every new shape costs a kernel to be made and memory to be kept for it."""
    return -(-size // step) * step


def answer_loss(
    model: Any, examples: list[tuple[np.ndarray, int]], device: torch.device, plan_weight: float = 1.0
) -> torch.Tensor:
    """Return the cross-entropy (nats per token) of the answer tokens of a batch, end token included.

    The first token of each answer counts `plan_weight` times; with 1 the result is the plain mean.
    """
    width = padded(max(len(ids) for ids, _ in examples))
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    targets = torch.full((len(examples), width), -100)
    for row, (ids, start) in enumerate(examples):
        tokens[row, : len(ids)] = torch.from_numpy(ids)
        targets[row, start - 1 : len(ids) - 1] = torch.from_numpy(ids[start:])
    tokens, targets = tokens.to(device), targets.to(device)
    wanted = torch.nonzero(targets.flatten() >= 0).squeeze(1)
    wanted = torch.cat([wanted, wanted.new_zeros(padded(len(wanted), 256) - len(wanted))])  # position 0 has no target
    wanted_targets = targets.flatten()[wanted]
    weights = torch.ones(targets.shape, device=device)
    weights[torch.arange(len(examples)), [start - 1 for _, start in examples]] = plan_weight
    wanted_weights = weights.flatten()[wanted] * (wanted_targets >= 0)
    with torch.autocast(device.type, torch.bfloat16):
        # Padding is on the right, so the causal mask already hides it.
        hidden = model.model(tokens).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[wanted])
    losses = nn.functional.cross_entropy(logits.float(), wanted_targets, ignore_index=-100, reduction="none")
    return (losses * wanted_weights).sum() / wanted_weights.sum()


def learning_rate(tokens: int, recipe: Recipe) -> float:
    """Return the rate after `tokens`: linear warm-up over 2 %, constant, then a linear cool-down to zero."""
    done = tokens / recipe.max_tokens
    return recipe.learning_rate * min(1.0, done / 0.02 + 0.01, max(0.0, 1 - done) / recipe.cooldown)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a freshly initialised model."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(args: argparse.Namespace, recipe: Recipe) -> None:
    """Train, or continue, and write the finished model to `args.out/model`."""
    keep_freed_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pairs, held_out = load_pairs(args.data, recipe)
    tokenizer_folder = args.out if (args.out / "tokenizer.json").exists() else args.init
    if tokenizer_folder:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    else:
        tokenizer = train_tokenizer((text for pair in pairs for text in pair), recipe.vocab_size)
    tokenizer.add_special_tokens({"additional_special_tokens": [USER, ASSISTANT, *length_tokens(recipe)]})
    tokenizer.save_pretrained(args.out)
    examples = encode(pairs, tokenizer, recipe)
    validation = encode(held_out, tokenizer, recipe)
    validation = [validation[i] for i in np.random.default_rng(recipe.seed).permutation(len(validation))[:64]]
    print(f"{len(pairs):,} pairs, {len(examples):,} kept, {sum(len(i) for i, _ in examples):,} tokens", flush=True)

    torch.manual_seed(recipe.seed)
    model: Any = LlamaForCausalLM.from_pretrained(args.init) if args.init else build_model(recipe, tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    model.float().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    progress: dict[str, Any] = {"step": 0, "tokens": 0}
    if (args.out / "progress.pt").exists():
        progress = torch.load(args.out / "progress.pt", weights_only=True)
        model.load_state_dict(progress.pop("model"))
        optimizer.load_state_dict(progress.pop("optimizer"))

    step, tokens = progress["step"], progress["tokens"]
    started, saved, trained, losses = time.monotonic(), time.monotonic(), 0, []
    for index, batch in enumerate(batches(examples, recipe)):
        if index < step:
            continue
        if tokens >= recipe.max_tokens:
            break
        chosen = [examples[i] for i in batch]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(tokens, recipe)
        loss = answer_loss(model, chosen, device, recipe.plan_weight if recipe.length_buckets else 1.0)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count = sum(len(ids) for ids, _ in chosen)
        step, tokens, trained = step + 1, tokens + count, trained + count
        losses.append(loss.item())
        if step % 100 == 0:
            with torch.no_grad():
                losses.append(answer_loss(model, validation, device).item())
            report(args.out, step, tokens, losses, trained / (time.monotonic() - started), recipe)
            losses = []
        if time.monotonic() - saved > 180 or tokens >= recipe.max_tokens:
            state = {"step": step, "tokens": tokens, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, args.out / "progress.tmp")
            (args.out / "progress.tmp").replace(args.out / "progress.pt")
            saved = time.monotonic()
    save(model, tokenizer, args.out / "model", recipe)


def report(out: Path, step: int, tokens: int, losses: list[float], rate: float, recipe: Recipe) -> None:
    """Append step, tokens, training and held-out loss (the last of `losses`) to `loss.csv`; print them."""
    *training, validation = losses
    mean = sum(training) / len(training)
    with (out / "loss.csv").open("a", newline="") as file:
        csv.writer(file).writerow([step, tokens, round(mean, 4), round(validation, 4)])
    left = (recipe.max_tokens - tokens) / rate / 60
    losses_text = f"loss {mean:.3f} held-out {validation:.3f}"
    print(f"step {step} tokens {tokens:,} {losses_text} {rate:,.0f} tokens/s {left:.0f} min left", flush=True)


def save(model: Any, tokenizer: PreTrainedTokenizerFast, out: Path, recipe: Recipe) -> None:
    """Write the model (bfloat16 safetensors), its tokenizer and its generation settings to `out`."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="parquet with prompt, response, source")
    parser.add_argument("--out", type=Path, required=True, help="run folder; continued if it holds progress")
    parser.add_argument("--init", type=Path, help="folder of a finished model to start from, with its tokenizer")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"(default {value})")
    args = parser.parse_args()
    train(args, Recipe(**{name: getattr(args, name) for name in asdict(Recipe())}))


if __name__ == "__main__":
    main()
