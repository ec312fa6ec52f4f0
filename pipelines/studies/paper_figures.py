"""What the runs of `amin paper` say: the paper's claims with a verdict each, and the figures as PNG."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scheduler.metrics import interval_over_seeds

Row = Mapping[str, Any]
Curves = dict[str, dict[float, tuple[float, float]]]
"""By policy and x: the mean over seeds and half the width of its 95 % interval, 0 for a single seed."""

PAPER_BOUNDS: Mapping[str, float] = {"two-point": 1.5, "geometric": 1.7, "linear-geometric": 1.56}
"""The paper's bounds of Amin's ratio to hindsight, by family of lengths."""
CLOSE = 1.2
"""Mean latency up to this multiple of hindsight's counts as close; the paper gives no number."""
SETTINGS = {
    "interval:1:1000": "(a) [1, 1000] for all",
    "bins:100:10": "(b) ten bins of 100",
    "relative:": "(c) [(1-x)o, (1+x)o]",
}
# Okabe and Ito's colours, which differ for colour-blind readers too; markers and dashes tell the lines apart in grey.
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "amax": {"color": "#D55E00", "marker": "s"},
    "fcfs": {"color": "#777777", "marker": "x", "linestyle": ":"},
    "amin-eviction": {"color": "#009E73", "marker": "^"},
    "amin": {"color": "#0072B2", "marker": "o"},
    "hindsight": {"color": "#000000", "linestyle": "--"},
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper, what was measured, and whether it holds."""

    claim: str
    figure: str
    verdict: str


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Return the claims with their verdicts; a verdict goes by means over seeds.

    Amin is close to hindsight if its mean latency is at most CLOSE times as long. Amax is about twice behind in a
    setting if its ratio is 1.5 to 2.5, and up to five times behind if the largest over x is at least 4. Growth counts
    as logarithmic if from 1/alpha = 10 to 40 the ratio grows by no larger a factor than ln(1/alpha).
    """
    last = [{name: curve[max(curve)] for name, curve in _curves(rows, "latency", s).items()} for s in SETTINGS]
    last[2] = _largest(_curves(rows, "latency", "relative:"))
    found = []
    for words, ratios in zip(SETTINGS.values(), last, strict=True):
        found.append(_of_amin(f"Amin close to hindsight, {words}", ratios, CLOSE))
    amax = [ratios["amax"] for ratios in last]
    twice = any(1.5 <= mean <= 2.5 for mean, _ in amax[:2])
    figure = f"amax {_text(amax[0])} in (a), {_text(amax[1])} in (b)"
    found.append(Claim("Amax about 2x behind in one setting", figure, _verdict(twice)))
    figure = f"amax at most {_text(amax[2])} in (c)"
    found.append(Claim("Amax up to 5x behind as x grows", figure, _verdict(amax[2][0] >= 4)))
    for family, bound in PAPER_BOUNDS.items():
        top = _largest(_curves(rows, "confirmed", family))
        found.append(_of_amin(f"Amin at most {bound} of hindsight, {family}", top, bound))
    limit = _curves(rows, "amax", "")["amax"]
    away = max(abs(ratio / x - 1) for x, (ratio, _) in limit.items())
    found.append(Claim("Amax tends to (s+u)/(s+l)", f"amax at most {away:.1%} away", _verdict(away <= 0.02)))
    growth = _curves(rows, "growth", "power")
    factors = {name: (curve[40][0] / curve[10][0], 0.0) for name, curve in growth.items()}
    most = math.log(40) / math.log(10)
    found.append(_of_amin(f"Amin's ratio grows as ln(1/alpha): x{most:.2f} from 10 to 40", factors, most))
    return found


def _curves(rows: Sequence[Row], experiment: str, setting: str, column: str = "ratio_to_hindsight") -> Curves:
    """Return a column of an experiment, by policy and x, over the settings that begin with `setting`.

    Of several values of the family's parameter the largest counts.
    """
    grouped: dict[str, dict[float, dict[float | None, list[float]]]] = {}
    for row in rows:
        if row["experiment"] == experiment and row["setting"].startswith(setting):
            by_parameter = grouped.setdefault(row["policy"], {}).setdefault(row["x"], {})
            by_parameter.setdefault(row["parameter"], []).append(row[column])
    return {
        policy: {x: max(_mean(values) for values in by_parameter.values()) for x, by_parameter in curve.items()}
        for policy, curve in grouped.items()
    }


def _mean(values: Sequence[float]) -> tuple[float, float]:
    interval = interval_over_seeds([{"value": value} for value in values])
    return float(np.mean(values)), 0.0 if interval is None else float(np.max(interval["value"]))


def _largest(curves: Curves) -> dict[str, tuple[float, float]]:
    return {policy: max(curve.values()) for policy, curve in curves.items()}


def _of_amin(words: str, ratios: Mapping[str, tuple[float, float]], most: float) -> Claim:
    """Return a claim that says of Amin that a ratio is at most `most`, judged for each refinement."""
    names = ("amin", "amin-eviction")
    figure = ", ".join(f"{name} {_text(ratios[name])}" for name in names)
    return Claim(words, figure, _verdict(*(name for name in names if ratios[name][0] <= most)))


def _text(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f}" + (f" ±{value[1]:.2f}" if value[1] else "")


def _verdict(*holding: str | bool) -> str:
    """Return the verdict, given whether it holds or the refinements that it holds for."""
    match holding:
        case (True,) | (_, _):
            return "holds"
        case (str(name),):
            return f"holds only for {name}"
        case _:
            return "does not hold"


def _axes(count: int) -> tuple[Any, Any]:
    figure = Figure(figsize=(3.3 * count, 3.6), layout="constrained")
    axes = figure.subplots(1, count)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any, handles: Mapping[str, Any]) -> bytes:
    figure.legend(handles.values(), handles, frameon=False, loc="outside upper center", ncols=len(handles), fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(axes: Any, curves: Curves, names: Sequence[str]) -> dict[str, Any]:
    """Draw the curves of some policies with their intervals as bands; return their handles by name."""
    handles = {}
    for name in names:
        x = np.array(sorted(curves[name]))
        mean, half = np.array([curves[name][each] for each in x]).T
        (handles[name],) = axes.plot(x, mean, markersize=4, linewidth=1.3, **LOOKS[name])
        axes.fill_between(x, mean - half, mean + half, color=LOOKS[name]["color"], alpha=0.2, linewidth=0)
    return handles


def _log_axis(axis: Any, ticks: Sequence[float]) -> None:
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def latency(rows: Sequence[Row]) -> bytes:
    """Return mean latency against the number of requests for (a) and (b), and against x for (c)."""
    figure, panels = _axes(3)
    for axes, (setting, title) in zip(panels, SETTINGS.items(), strict=True):
        handles = _draw(axes, _curves(rows, "latency", setting, "mean_latency"), list(LOOKS))
        axes.set(title=title, ylim=(0, None), xlabel="x" if setting == "relative:" else "requests, all at 0")
    panels[0].set_ylabel("mean latency (iterations)")
    return _png(figure, handles)


def ratio(rows: Sequence[Row]) -> bytes:
    """Return the largest ratio to hindsight over the family's parameter, against alpha, with the paper's bounds."""
    figure, panels = _axes(len(PAPER_BOUNDS))
    for axes, (family, bound) in zip(panels, PAPER_BOUNDS.items(), strict=True):
        curves = _curves(rows, "ratio", family)
        by_alpha = {name: {1 / x: value for x, value in curve.items()} for name, curve in curves.items()}
        handles = _draw(axes, by_alpha, ("amax", "amin", "amin-eviction"))
        handles["the paper's bound of Amin"] = axes.axhline(bound, color="#000000", linestyle="--", linewidth=1)
        axes.set(xscale="log", yscale="log", ylim=(0.95, 26), title=f"{family}: {bound}", xlabel="alpha = l/u")
        _log_axis(axes.xaxis, sorted(by_alpha["amin"]))
        _log_axis(axes.yaxis, (1, 1.5, 2, 3, 5, 10, 20))
    panels[0].set_ylabel("total latency / hindsight's")
    return _png(figure, handles)


def growth(rows: Sequence[Row]) -> bytes:
    """Return Amax's ratio against (s+u)/(s+l), and the ratios against 1/alpha for lengths of weight o^-2."""
    figure, (left, right) = _axes(2)
    limit = _curves(rows, "amax", "")
    handles = _draw(left, {"amax": limit["amax"]}, ("amax",))
    ends = [1, max(limit["amax"])]
    (handles["equal, linear"],) = left.plot(ends, ends, color="#000000", linewidth=1, linestyle="--")
    left.set(xscale="log", yscale="log", xlabel="(s+u)/(s+l)", ylabel="total latency / hindsight's")
    left.set_title("all true lengths l")
    curves = _curves(rows, "growth", "power")
    handles |= _draw(right, curves, ("amax", "amin", "amin-eviction"))
    x = np.geomspace(min(curves["amin"]), max(curves["amin"]), 50)
    right.plot(x, x, color="#000000", linewidth=1, linestyle="--")
    (handles["1 + ln(1/alpha)"],) = right.plot(x, 1 + np.log(x), color="#000000", linewidth=1, linestyle=":")
    right.set(xscale="log", yscale="log", xlabel="1/alpha", title="lengths with P(o) ~ 1/o²")
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        _log_axis(axis, (1, 2, 5, 10, 20, 40))
    return _png(figure, handles)


FIGURES: Mapping[str, Callable[[Sequence[Row]], bytes]] = {"latency": latency, "ratio": ratio, "growth": growth}
