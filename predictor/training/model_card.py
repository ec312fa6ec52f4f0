"""The model card of an export: a README.md that Hugging Face renders."""

from typing import Any

from predictor.spec import PredictorSpec

CARD = """---
license: {licence}
library_name: onnx
pipeline_tag: text-classification
tags: [llm-serving, scheduling, response-length, onnx, {precision}]
---
# {name}

Lower bounds of LLM response lengths, for serving: a survival curve on {num_bins} length bins up to {max_length} tokens
for each served model below, calibrated so that an answer reaches its bound with probability 1 - tau. Exported by `amin
export` in {precision}. Needs `onnxruntime` and `tokenizers`, no torch:

    from predictor.serving import LengthPredictor
    predictions = LengthPredictor("{name}").predict(["Why is the sky blue?"], tau=0.1, max_new_tokens=512)
    predictions.lower_bounds   # tokens, reached with probability >= 1 - tau

Served models, for `predict(..., model=NAME)`: {choices}. Default: {served_model}. It reads the first and the last
tokens of a prompt, {max_prompt_tokens} in all, and counts words, numbers and terms over the whole.

{measured}
On other traffic than it was calibrated on, coverage is not guaranteed: train and calibrate on records of your own.
`manifest.json` states the length bins, the calibration, what was measured, the versions and the hash of each file.
"""

COLUMNS = (
    "coverage", "worst_group_coverage", "pinball_loss", "tightness", "kendall_tau", "mean_absolute_error", "within_100",
)  # fmt: skip
IN_TOKENS = ("pinball_loss", "mean_absolute_error")


def model_card(spec: PredictorSpec, precision: str, measured: dict[str, Any] | None, name: str, licence: str) -> str:
    """Return the card of an export that will be called `name`; `measured` as in its manifest."""
    return CARD.format(
        licence=licence,
        precision=precision,
        name=name,
        num_bins=spec.bins.num_bins,
        max_length=f"{spec.bins.max_length:,}",
        choices=", ".join(spec.choices) or "one without a name",
        served_model=spec.served_model or "the only one",
        max_prompt_tokens=spec.max_prompt_tokens,
        measured=measures_table(measured) if measured else "Nothing was measured: there was no test split.\n",
    )


def measures_table(measured: dict[str, Any]) -> str:
    """Return a table, a line for each served model, of what was `measured` on the test split."""
    tau = measured["tau"]
    lines = [
        f"Measured on test prompts, tau = {tau:g} (target coverage {1 - tau:g}), each served "
        "model by itself, lengths\nclipped at 4,096 tokens; pinball loss and error of the median in tokens, tightness "
        "is mean bound / mean length:\n",
        "| served model | coverage | worst data set | pinball loss | tightness | Kendall tau-b | error | within 100 |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(name or "the only one", part) for name, part in measured["models"].items()),
    ]
    if len(measured["models"]) > 1:
        lines.append(_line("*all together*", measured))
    return "\n".join(lines) + "\n"


def _line(name: str, part: dict[str, Any]) -> str:
    cells = ["-" if part[key] is None else format(part[key], ".1f" if key in IN_TOKENS else ".3f") for key in COLUMNS]
    return f"| {name} | {' | '.join(cells)} |"
