"""The finished runs on disk, so that an interrupted evaluation continues: `OUT/runs/SERVER-SEED.parquet`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluate.endpoint.measure import Sent, ServerRun
from pipelines.files import atomic_file, write_json
from predictor.errors import InputError

SETTINGS = "settings.json"


class ServerRuns:
    """Runs that were made with the same settings."""

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Look at what is there; nothing is written before the first `keep`.

        Raises:
            InputError: `resume`, and what is there was made with other settings, or is damaged.
        """
        self._folder, self._settings, self._resume = out / "runs", dict(settings), resume
        if not resume or not (self._folder / SETTINGS).exists():
            self._resume = False
            return
        there = self._read_settings()
        for name in {**self._settings, **there}:
            if there.get(name) != self._settings.get(name):
                raise InputError(
                    f"--resume: {out} was made with {name} {there.get(name)}, now it is {self._settings.get(name)}; "
                    "use the same settings or another --out"
                )

    def _read_settings(self) -> dict[str, Any]:
        path = self._folder / SETTINGS
        try:
            return dict(json.loads(path.read_bytes()))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({' '.join(str(error).split())}); use another --out") from None

    def keep(self, run: ServerRun) -> None:
        """Write a finished run; the first one takes the place of runs that are not gone on with."""
        if not self._resume:
            for replaced in (*self._folder.glob("*.npz"), *self._folder.glob("*.parquet")):
                replaced.unlink()
            write_json(self._folder / SETTINGS, self._settings)
            self._resume = True
        table = pa.Table.from_pylist([asdict(sent) for sent in run.requests])
        with atomic_file(self._path(run.server, run.seed)) as aside, aside.open("wb") as stream:
            pq.write_table(table, stream)

    def load(self, server: str, seed: int, num_requests: int) -> ServerRun | None:
        """Return a finished run, or None where there is none; InputError where its file is damaged."""
        path = self._path(server, seed)
        if not self._resume or not path.exists():
            return None
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            columns = table.select([field.name for field in fields(Sent)])
            requests = [Sent(**row) for row in columns.to_pylist()]
        except (pa.ArrowException, KeyError, TypeError) as error:
            requests, problem = [], " ".join(str(error).split())[:200]
        else:
            problem = f"{len(requests)} requests where {num_requests} were sent"
        if len(requests) != num_requests:
            raise InputError(f"{path}: damaged ({problem}); remove it, and --resume makes that run again")
        return ServerRun(server, seed, requests)

    def _path(self, server: str, seed: int) -> Path:
        return self._folder / f"{server}-{seed}.parquet"
