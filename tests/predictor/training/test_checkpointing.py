"""Checkpoints: whole or the one before, and data alone."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from predictor.errors import InputError
from predictor.training.checkpointing import WholeCheckpoints, read_checkpoint


class Planted:
    """What a folder from elsewhere may hold: unpickling it runs code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """In one line, and the code has not run."""
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "planted": Planted(tmp_path / "ran")}, file)
    with pytest.raises(InputError, match=r"last\.ckpt: not whole, or holds more than weights") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    """In one line that says what to do."""
    file = tmp_path / "last.ckpt"
    file.write_bytes(content)
    with pytest.raises(InputError, match="remove it to train again from the start"):
        read_checkpoint(file)


def test_a_disk_without_room_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """And names the folder whose disk it is; nothing half-written stays."""
    file, plugin = tmp_path / "checkpoints" / "last.ckpt", WholeCheckpoints()
    plugin.save_checkpoint({"state_dict": {"a": torch.ones(4)}}, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=f"^{tmp_path}/checkpoints: a checkpoint of 1 MiB cannot be written"):
            plugin.save_checkpoint({"state_dict": {"a": torch.ones(250_000)}}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(read_checkpoint(file)["state_dict"]["a"], torch.ones(4))
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_never_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for temporary files that cannot be used changes nothing."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    WholeCheckpoints().save_checkpoint({"state_dict": {"a": torch.ones(4)}}, tmp_path / "run" / "last.ckpt")
    assert (tmp_path / "run" / "last.ckpt").is_file()
