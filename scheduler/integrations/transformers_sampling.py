"""Drawing the next tokens without sorting the vocabulary: temperature, top_k and top_p as transformers define them."""

from typing import Any

import torch

CHUNK = 256
"""Tokens summed together where the whole vocabulary may be drawn; and the fewest likeliest tokens tried for top_p."""
SORTED_BELOW = 0.5
"""A smaller top_p leaves out more than half of the draws: then the likeliest tokens are looked for instead."""
UNDERSTOOD = {"TemperatureLogitsWarper": "temperature", "TopKLogitsWarper": "top_k", "TopPLogitsWarper": "top_p"}
"""Processors of transformers that are done here, and the setting of each."""


class Sampler:
    """Takes the place of a model runner's processing and sampling, with random numbers of its own."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int, device: torch.device) -> None:
        """Take the settings (top_k 0: no such limit); the same seed and logits give the same tokens."""
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._rng = torch.Generator(device).manual_seed(seed)

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Return a token for each row of logits, [n]; `logits` is [n, vocabulary], float."""
        logits = logits if self._temperature == 1.0 else logits / self._temperature
        if self._top_k == 0 and self._top_p >= SORTED_BELOW:
            return self._draw_any(logits)
        weights, tokens = likeliest(logits, self._top_k, self._top_p)
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill_(before >= self._top_p, 0.0)
        return tokens.gather(1, _pick(weights, self._uniform(len(logits), 1)[0])).squeeze(1)

    def _draw_any(self, logits: torch.Tensor) -> torch.Tensor:
        """Return a token for each row, [n], drawn of the whole vocabulary and again where top_p leaves it out.

        A token is kept where those that are likelier hold less than `top_p`: that asks for a sum, and for no order.
        """
        weights = (logits - logits.amax(-1, keepdim=True)).exp_()
        missing = -weights.shape[-1] % CHUNK
        chunks = torch.nn.functional.pad(weights, (0, missing)).view(len(weights), -1, CHUNK)
        sums = chunks.sum(-1).double()
        tokens = torch.empty(len(weights), dtype=torch.int64, device=weights.device)
        left = torch.arange(len(weights), device=weights.device)
        while len(left):
            uniform = self._uniform(len(left), 2)
            chosen = _pick(sums[left], uniform[0])
            inner = chunks[left, chosen.squeeze(1)].double()
            tokens[left] = (chosen * CHUNK + _pick(inner, uniform[1])).squeeze(1)
            if self._top_p >= 1.0:
                break
            rows = weights if len(left) == len(weights) else weights[left]
            likelier = (rows * (rows > rows.gather(1, tokens[left][:, None]))).sum(-1)
            left = left[likelier.double() >= self._top_p * sums[left].sum(-1)]
        return tokens

    def _uniform(self, num_rows: int, count: int) -> torch.Tensor:
        shape = (count, num_rows, 1)
        return torch.rand(shape, generator=self._rng, device=self._rng.device, dtype=torch.float64)


def install(runner: Any, seed: int, device: torch.device) -> None:
    """Let a model runner of transformers sample like this, where its processors are no others than those known here."""
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    for processor in runner.logit_processor.logits_processor:
        name = UNDERSTOOD.get(type(processor).__name__)
        if name is None:
            return
        settings[name] = getattr(processor, name)
    if not runner.do_sample or runner.return_logprobs:
        return
    sampler = Sampler(**settings, seed=seed, device=device)

    def sample(scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        output_ids[0, : scores.shape[1]].copy_(sampler.draw(scores[0]))

    runner.logit_processor.do_processing = False
    runner._sample = sample


def likeliest(logits: torch.Tensor, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities and tokens that top_k and top_p can keep, likeliest first, [n, k].

    Only so many are sorted as hold `top_p` of the probability in every row.
    """
    size = logits.shape[-1]
    if top_k:
        values, tokens = logits.topk(min(top_k, size))
        return values.double().softmax(-1), tokens
    total = logits.logsumexp(-1, keepdim=True)
    count = min(CHUNK, size)
    while True:
        values, tokens = logits.topk(count)
        weights = (values - total).double().exp()
        if count == size or bool((weights.sum(-1) >= top_p).all()):
            return weights, tokens
        count = min(8 * count, size)


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return an index of each row drawn by its weights, [n, 1]; one with weight 0 is never drawn."""
    cumulative = weights.cumsum(-1)
    below = cumulative <= uniform * cumulative[:, -1:]
    return below.sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
