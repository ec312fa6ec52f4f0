import pyarrow as pa

from pipelines.demo import RECORDS, with_more_draws
from predictor.records.records import read_records


def test_draws_of_the_same_prompt_come_together() -> None:
    """After its own; other prompts stay as they are."""
    table = pa.table({"prompt_id": ["a", "b"], "output_lens": [[1], [2, 3]], "is_truncated": [[False], [True, False]]})
    more = pa.table({"prompt_id": ["b", "c"], "output_lens": [[9], [8]], "is_truncated": [[True], [False]]})
    joined = with_more_draws(table, more).to_pylist()
    assert joined[0] == {"prompt_id": "a", "output_lens": [1], "is_truncated": [False]}
    assert joined[1] == {"prompt_id": "b", "output_lens": [2, 3, 9], "is_truncated": [True, False, True]}
    assert len(joined) == 2


def test_the_bundled_records_are_of_the_bundled_prompts() -> None:
    """In all four splits, at least a hundred of them to evaluate with, whose first draw is known up to 512 tokens."""
    records = read_records(RECORDS)
    assert set(records.models) == {"SmolLM2-135M-Instruct"}
    splits = records.splits
    assert splits is not None
    assert set(splits) == {"train", "validation", "calibration", "test"}
    test = [i for i, split in enumerate(splits) if split == "test"]
    assert len(test) >= 100
    assert all(not records.is_truncated[i][0] or records.output_lens[i][0] >= 512 for i in test)
