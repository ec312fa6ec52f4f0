"""Recorded prompts and lengths of a large model, cut to what a small one can be made to generate.

    python -m pipelines.studies.forced_requests ../shared/data/castillo_records.parquet --model Llama-3.1-8B-Instruct \
        --tokenizer smollm2 --out castillo.parquet

`amin evaluate --decoding forced` then serves these prompts with the small model and ends each answer at the first
recorded length: the lengths, and what a predictor can know of them, are those of the large model.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from pipelines.files import atomic_file
from pipelines.served_model.loading import fastest_dtype, place_of


def choose(
    records: Path, model: str, split: str, tokenizer: str, max_prompt_tokens: int, max_output_len: int, out: Path
) -> tuple[int, int]:
    """Write the records of a model and split that are short enough; return how many there were and how many stay.

    They are in random order, so that the first so many are like the rest.

    Args:
        records: Parquet with model, split, prompt, output_lens.
        model: Served model of the records.
        split: Split of the records.
        tokenizer: The small model, as `amin evaluate` takes it; it counts the tokens of a prompt.
        max_prompt_tokens: Longest prompt that stays.
        max_output_len: Longest first recorded answer that stays, in tokens of the large model.
        out: Parquet to write.
    """
    table = pq.read_table(records, filters=[("model", "=", model), ("split", "=", split)])
    place = place_of(tokenizer, fastest_dtype("cpu"))
    encode = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    sizes = [len(ids) for ids in encode(table.column("prompt").to_pylist(), add_special_tokens=False)["input_ids"]]
    firsts = [lens[0] for lens in table.column("output_lens").to_pylist()]
    rows = enumerate(zip(sizes, firsts, strict=True))
    kept = [i for i, (size, first) in rows if size <= max_prompt_tokens and first <= max_output_len]
    with atomic_file(out) as aside:
        pq.write_table(table.take(np.random.default_rng(0).permutation(kept)), aside)
    return len(sizes), len(kept)


def main() -> None:
    """Parse the command line and choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="parquet with model, split, prompt, output_lens")
    parser.add_argument("--model", required=True, help="served model of the records")
    parser.add_argument("--split", default="test", help="split of the records (default: test)")
    parser.add_argument("--tokenizer", required=True, help="the model that is to generate")
    parser.add_argument("--max-prompt-tokens", type=int, default=512, help="(default 512)")
    parser.add_argument("--max-output-len", type=int, default=1024, help="(default 1024)")
    parser.add_argument("--out", type=Path, required=True, help="parquet to write")
    args = parser.parse_args()
    found, kept = choose(
        args.records, args.model, args.split, args.tokenizer, args.max_prompt_tokens, args.max_output_len, args.out
    )
    print(
        f"{args.out}: {kept} of {found} prompts, up to {args.max_prompt_tokens} tokens, answers up to "
        f"{args.max_output_len}"
    )


if __name__ == "__main__":
    main()
