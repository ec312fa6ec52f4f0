"""The two bundled predictors and their cards, from the runs that these commands make.

python -m pipelines.studies.predictor.data ... --instructed 1500 --out records.parquet     (see there)
python -m pipelines.studies.predictor.encoder_of_export EARLIER_SMALL --config CONFIG --out small-encoder
TRAIN="amin train --data records.parquet --epochs 0 --head-epochs 10 --half --default-model Llama-3.1-8B-Instruct"
$TRAIN --encoder EARLIER_LARGE --out large
$TRAIN --encoder small-encoder --max-prompt-tokens 24 --out small
amin export small --precision int8 --out export/length-predictor-small
python -m pipelines.studies.predictor.bundled --large large --small export/length-predictor-small --out checkpoints
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.files import atomic_directory, write_json
from predictor.errors import InputError
from predictor.export_folder import MANIFEST, sha256
from predictor.training.model_card import measures_table

KNOWS = """**What it knows**: English programming tasks and questions asked of thirteen instruct models (CASTILLO), chat
and hard questions asked of nine older open models (Arena-hard, OASST; lengths in GPT-2 tokens, cut answers missing, so
they lean short), and SmolLM2-135M's answers to chat, questions and the bundled prompts. It reads plain requests for a
length ("in 300 words", "list 5", "briefly", "yes or no") in ten languages; what these come to it learnt from
{instructed} prompts whose lengths are a rule's, not a model's (`pipelines/studies/predictor/instruction_prompts.py`).
**What it does not know**: your model and your traffic. `average` stands for a model that nobody knows; it ranks fairly,
and its coverage is no promise. `like:NAME` is better where the name tells family, size or thinking. Thinking, tools,
long conversations and system prompts without a request for a length were not in its data: it reads them only once it
is trained on yours.
"""
MADE = """**How it was made.** {encoder} New heads (one of free hazards, one of four log-logistics, their survivals
averaged), trained alone for at most ten epochs on states of the encoder computed once, by censored likelihood; one
seed. **Data**: [CASTILLO](https://arxiv.org/abs/2505.16881) (CC-BY-4.0) without Alpaca, ten lengths a prompt and model;
prompts of Dolly and DS-1000 (CC-BY-SA), MBPP (CC-BY), APPS (MIT), BigCodeBench (Apache-2.0); lengths of answers in
oasst-model-eval and arena-hard-auto (Apache-2.0); lengths of SmolLM2-135M-Instruct (Apache-2.0), half of them cut where
a run stopped and taken as "at least this long". One split by near-duplicate cluster over all files. No prompt or answer
is in the repository. Commands: `pipelines/studies/predictor/bundled.py`.
"""
ENCODERS = {
    "large": "The encoder, which this project had fine-tuned on CASTILLO from all-MiniLM-L6-v2 (Apache-2.0), is kept.",
    "small": "The encoder, five layers that this project had fine-tuned from all-MiniLM-L6-v2 (Apache-2.0) on CASTILLO "
    "beside a teacher, its weights read back from int8, is frozen.",
}
LARGE_CARD = """---
license: other
tags: [llm-serving, scheduling, response-length]
---
# length-predictor

{knows}
Predicts how long the answer of a served model to a prompt will be: a survival curve on {num_bins} length bins up to
{max_length:,} tokens, and from it a lower bound that an answer reaches with probability 1 - tau.

    amin predict checkpoints/length-predictor --data prompts.jsonl --model gemma-3-4b-it --tau 0.1 --out bounds.jsonl
    amin train --data records-of-your-model.parquet --out run      # new heads on this encoder
    amin train --init checkpoints/length-predictor --data records-of-your-model.parquet --out run

The second goes on from its heads: for a model that is asked such tasks and questions as these, not for other traffic.

{measured}
{made}"""


def main() -> None:
    """Parse, assemble both folders."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.studies.predictor.bundled", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--large", type=Path, required=True, help="run of amin train")
    parser.add_argument("--small", type=Path, required=True, help="export of amin export")
    parser.add_argument("--instructed", type=int, default=1500, help="written prompts in the data (default: 1500)")
    parser.add_argument("--out", type=Path, required=True, help="folder that holds length-predictor and -small")
    args = parser.parse_args()
    knows = KNOWS.format(instructed=f"{args.instructed:,}")
    with atomic_directory(args.out / "length-predictor") as folder:
        shutil.copytree(args.large / "predictor", folder, dirs_exist_ok=True)
        stated = json.loads((folder / "predictor.json").read_text())
        metrics = json.loads((args.large / "metrics.json").read_text())
        card = LARGE_CARD.format(
            knows=knows,
            num_bins=len(stated["bins"]) - 1,
            max_length=stated["bins"][-1],
            measured=measures_table(measured_of(metrics)),
            made=MADE.format(encoder=ENCODERS["large"]),
        )
        (folder / "README.md").write_text(card)
    with atomic_directory(args.out / "length-predictor-small") as folder:
        shutil.copytree(args.small, folder, dirs_exist_ok=True)
        rewrite_small(folder, knows)


def measured_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what `metrics.json` of a run says of its test split, in the form that an export's manifest has."""
    return {**metrics["test"], "models": {name: part["test"] for name, part in metrics["models"].items()}}


def rewrite_small(folder: Path, knows: str) -> None:
    """Put what the predictor knows first in its card, and how it was made last; the manifest holds the card's hash."""
    card = folder / "README.md"
    head, title, rest = card.read_text().partition("# length-predictor-small\n")
    if not title:
        raise InputError(f"{card}: is the card of another; export to a folder called length-predictor-small")
    card.write_text(f"{head}{title}\n{knows}{rest}\n{MADE.format(encoder=ENCODERS['small'])}")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"]["README.md"] = sha256(card)
    write_json(folder / MANIFEST, manifest)


if __name__ == "__main__":
    main()
