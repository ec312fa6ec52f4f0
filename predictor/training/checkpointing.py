"""Checkpoints of a run: written next to their place, read as data; the last one stays until the new one is whole."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from predictor.errors import InputError

PATHS_OF_STATE = ("best_model_path", "kth_best_model_path", "last_model_path")


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint next to its target and renames it: a kill or a full disk leaves the one before.

    Lightning's own goes by way of /tmp, and where that is another file system the last step is a copy that can break.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; InputError, naming the folder, where its disk has no room or fails."""
        target = Path(path)
        aside = target.with_name(
            f".{target.name}.part"
        )  # a run has one writer, which takes over what a killed one left
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                stream.write(content.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(target)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise InputError(
                f"{target.parent}: a checkpoint of {content.tell() / 2**20:.0f} MiB cannot be written there "
                f"({error.strerror}); make room on its disk and continue with --resume"
            ) from None


class BestEpoch(ModelCheckpoint):
    """Keeps the best epoch; a run whose folder has moved since goes on from the best epoch there."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read the state, with its paths in the folder that the checkpoints are in now."""

        def moved(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {name: moved(state_dict[name]) for name in PATHS_OF_STATE}
        kept = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": kept})


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, on the CPU; tensors and plain values alone, so that no file can run code.

    Raises:
        InputError: the file is not whole, or holds more than that.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        problem = "not whole, or holds more than weights and is not read"
    except (OSError, RuntimeError, EOFError, ValueError, KeyError):
        problem = "not whole"
    else:
        if isinstance(found, dict) and "state_dict" in found:
            return found
        problem = "not a checkpoint of a run"
    raise InputError(f"{file}: {problem}; remove it to train again from the start")
