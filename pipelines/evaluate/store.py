"""The finished runs of `amin evaluate` on disk, so that an interrupted evaluation continues."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import isnan, nan
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipelines.collect.draws import PartialFile
from pipelines.evaluate.run import MeasuredRun
from pipelines.files import atomic_file, write_json
from pipelines.results import PolicyRun
from predictor.errors import InputError
from scheduler.forecast import Forecast
from scheduler.loop import RunResult, Timeline
from scheduler.renewals import Renewal
from scheduler.request import Request

NO_VALUE = -1


class RunStore:
    """`OUT/runs`: the settings, the reference lengths, and a file for each finished run."""

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Look at what is there; no run or setting is written or removed before the first `keep`.

        Raises:
            InputError: `resume`, and the runs that are there were made with other settings or inputs.
        """
        self._folder, self._settings, self._resume = out / "runs", dict(settings), resume
        there = self._read("settings.json") if resume else None
        if not resume:
            self.partial_reference.remove()
        for name, value in self._settings.items():
            if there is not None and there.get(name) != value:
                value = there.get(name)
                raise InputError(
                    f"--resume: {out} was made with {name} {value}, now it is {self._settings.get(name)}; "
                    "use the same settings or another --out"
                )

    @property
    def case(self) -> dict[str, Any] | None:
        """Reference lengths and tokens of the evaluation that is continued, or None."""
        return self._read("case.json") if self._resume else None

    @property
    def partial_reference(self) -> PartialFile:
        """Where reference answers are kept until they are whole."""
        return PartialFile(self._folder / "reference", self._settings)

    def require_prompts(self, prompts: Sequence[str]) -> None:
        """Raise InputError if the evaluation that is continued had other prompts."""
        if self.case is not None and self.case["prompts"] != digest(prompts):
            raise InputError("--resume: the prompts are not those of the runs that are there; use another --out")

    def keep(self, measured: MeasuredRun, case: Mapping[str, Any]) -> None:
        """Write a finished run; before the first one what all have in common, in place of runs that are replaced."""
        if self.case is None:
            for replaced in self._folder.glob("*.npz"):
                replaced.unlink()
            write_json(self._folder / "settings.json", self._settings)
            write_json(self._folder / "case.json", dict(case))
            self.partial_reference.remove()
        self._resume = True
        run = measured.run
        with atomic_file(self._path(run.policy, run.seed)) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **_columns(measured))

    def load(self, policy: str, seed: int, facts: Sequence[Request]) -> MeasuredRun | None:
        """Return a finished run, or None; `facts` are those of all prompts."""
        path = self._path(policy, seed)
        if not self._resume or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
                return _measured(policy, seed, facts, dict(columns))
        except (BadZipFile, EOFError, KeyError, ValueError) as error:
            raise damaged(path, error, "remove it, and --resume makes that run again") from None

    def _path(self, policy: str, seed: int) -> Path:
        return self._folder / f"{policy}-{seed}.npz"

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / name
        if not path.exists():
            return None
        try:
            value: dict[str, Any] = dict(json.loads(path.read_bytes()))
        except (TypeError, ValueError) as error:
            raise damaged(path, error, "use another --out") from None
        return value


def damaged(path: Path, error: Exception, remedy: str) -> InputError:
    """Return the error for a file of an earlier run that cannot be read."""
    return InputError(f"{path}: damaged ({' '.join(str(error).split())}); {remedy}")


def digest(prompts: Sequence[str]) -> str:
    """Return a short name of prompts, to compare them by."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]


def _columns(measured: MeasuredRun) -> dict[str, Any]:
    run = measured.run
    result, requests = run.result, run.requests
    columns: dict[str, Any] = {
        field.name: getattr(result, field.name) for field in fields(RunResult) if field.name != "timeline"
    }
    columns |= {f"timeline_{field.name}": getattr(result.timeline, field.name) for field in fields(Timeline)}
    columns |= {
        "order": np.array(measured.order),
        "entry_times": measured.entry_times,
        "iterations": measured.iterations,
        "num_identical": np.array(measured.num_identical),
        "attention": np.array(measured.attention),
        "num_warm_up": np.array(run.num_warm_up),
        "extra": np.array(json.dumps(dict(run.extra))),
        "lower": np.array([request.output_len_lower_bound for request in requests]),
        "upper": _optional([request.output_len_upper_bound for request in requests]),
        "middle": _optional([request.output_len_prediction for request in requests]),
    }
    forecasts = [request.forecast for request in requests if request.forecast is not None]
    if forecasts:
        columns |= {"edges": forecasts[0].edges, "survival": np.array([forecast.survival for forecast in forecasts])}
        columns["tail"] = np.array([np.nan if forecast.tail is None else forecast.tail for forecast in forecasts])
    return columns | _renewal_columns(measured.renewals)


def _renewal_columns(renewals: Mapping[int, Sequence[Renewal]]) -> dict[str, Any]:
    """Return all renewals one after the other; their edges differ, but a probe gives all the same number of them."""
    rows = [(index, renewal) for index, each in renewals.items() for renewal in each]
    if not rows:
        return {}
    return {
        "renewed": np.array([index for index, _ in rows]),
        "renewed_after": np.array([renewal.num_generated for _, renewal in rows]),
        "renewed_edges": np.array([renewal.forecast.edges for _, renewal in rows]),
        "renewed_survival": np.array([renewal.forecast.survival for _, renewal in rows]),
        "renewed_lower": np.array([renewal.output_len_lower_bound for _, renewal in rows]),
    }


def _renewals(columns: dict[str, Any]) -> dict[int, list[Renewal]]:
    found: dict[int, list[Renewal]] = {}
    if "renewed" in columns:
        names = ("renewed", "renewed_after", "renewed_edges", "renewed_survival", "renewed_lower")
        for index, after, edges, survival, lower in zip(*(columns[name] for name in names), strict=True):
            found.setdefault(int(index), []).append(Renewal(int(after), Forecast(edges, survival), int(lower)))
    return found


def _forecast(columns: dict[str, Any], k: int) -> Forecast | None:
    if "edges" not in columns:
        return None
    tail = float(columns["tail"][k]) if "tail" in columns else nan  # a run of an earlier version has none
    return Forecast(columns["edges"], columns["survival"][k], None if isnan(tail) else tail)


def _optional(values: Sequence[int | None]) -> NDArray[np.int64]:
    return np.array([NO_VALUE if value is None else value for value in values], dtype=np.int64)


def _measured(policy: str, seed: int, facts: Sequence[Request], columns: dict[str, Any]) -> MeasuredRun:
    timeline = Timeline(**{field.name: columns[f"timeline_{field.name}"] for field in fields(Timeline)})
    names = [field.name for field in fields(RunResult) if field.name != "timeline"]
    result = RunResult(**{name: columns[name] for name in names}, timeline=timeline)
    order = columns["order"].tolist()
    requests = []
    for k, i in enumerate(order):
        upper, middle = int(columns["upper"][k]), int(columns["middle"][k])
        requests.append(
            replace(
                facts[i],
                arrival_time=float(result.arrival_time[k]),
                output_len_lower_bound=int(columns["lower"][k]),
                output_len_upper_bound=None if upper == NO_VALUE else upper,
                output_len_prediction=None if middle == NO_VALUE else middle,
                forecast=_forecast(columns, k),
            )
        )
    run = PolicyRun(policy, seed, requests, result, json.loads(str(columns["extra"])), int(columns["num_warm_up"]))
    num_identical, attention = int(columns["num_identical"]), str(columns.get("attention", ""))
    renewals, iterations = _renewals(columns), columns["iterations"]
    return MeasuredRun(run, order, columns["entry_times"], iterations, num_identical, renewals, attention)
