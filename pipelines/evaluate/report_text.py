"""The evaluation in plain words, losses included."""

from collections.abc import Mapping
from typing import Any

OURS = ("amin", "amin-survival")


def summary(policies: Mapping[str, Any]) -> str:
    """Return what each of our policies gained over the others, and how far hindsight is; a sentence each."""
    sentences = [_gain(name, policies) for name in OURS if name in policies]
    if not sentences:
        mean = {name: entry["mean"]["mean_latency"] for name, entry in policies.items()}
        return f"Lowest mean latency: {min(mean, key=lambda name: mean[name])}."
    return " ".join(sentences)


def _gain(ours: str, policies: Mapping[str, Any]) -> str:
    mean = {name: entry["mean"]["mean_latency"] for name, entry in policies.items()}
    parts = []
    for name in ("fcfs", "fcfs-reserve", "amax"):
        if name in mean:
            width = _width(policies[ours]) if name == "fcfs" else None
            parts.append(f"{_factor(_ratio(name, ours, policies), width)} {name}")
    title = ours.capitalize()
    text = f"{title} with this predictor had a mean latency {', '.join(parts)}" if parts else f"{title} was run"
    if "hindsight" in mean:
        gap = 1 - mean["hindsight"] / mean[ours]
        text += f"; hindsight, which knows every length, was {abs(gap):.0%} {'below' if gap > 0 else 'above'} it"
    return text + "."


def _ratio(name: str, ours: str, policies: Mapping[str, Any]) -> float:
    """Return the mean latency of another policy over ours: of fcfs the mean over pairs, as the table has it."""
    paired = (policies[ours].get("versus_fcfs") or {}).get("mean_latency") if name == "fcfs" else None
    if paired:
        return float(paired["ratio"])
    return float(policies[name]["mean"]["mean_latency"] / policies[ours]["mean"]["mean_latency"])


def _width(entry: Mapping[str, Any]) -> float | None:
    paired = (entry.get("versus_fcfs") or {}).get("mean_latency")
    return None if paired is None else paired["ratio_interval_95"]


def _factor(ratio: float, width: float | None = None) -> str:
    """Return how ours compares: `ratio` is the other mean latency over ours, `width` half its interval."""
    span = "" if width is None else f" (95 % interval {ratio - width:.2f} to {ratio + width:.2f})"
    if abs(ratio - 1) < 0.005:
        return f"no different{span} from"
    if width is not None and abs(ratio - 1) <= width:
        return f"not measurably different{span} from"
    return f"{ratio:.2f}x lower{span} than" if ratio > 1 else f"{1 / ratio:.2f}x HIGHER{span} than"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know with the summary: where it does not help, and what the figures rest on."""
    mean = {name: entry["mean"] for name, entry in results["policies"].items()}
    lines = []
    if "fcfs" in mean:
        waits = mean["fcfs"]["mean_queueing_delay"] / mean["fcfs"]["mean_latency"]
        lines.append(
            f"Under fcfs a request waited {waits:.0%} of its latency for its first admission. A policy can only win "
            "that back: where nothing waits, all policies are the same."
        )
        lines += [_tail(name, mean) for name in OURS if name in mean]
        if "engine-fifo" in mean:
            ratio = mean["engine-fifo"]["mean_latency"] / mean["fcfs"]["mean_latency"]
            lines.append(
                f"The engine's own scheduler, without our loop, had {ratio:.2f} times the mean latency of our fcfs: "
                "this says whether fcfs is a fair opponent and what the loop costs."
            )
    bounds = results["bounds"]
    if bounds.get("tightness", 1.0) < 0.3:
        lines.append(
            f"The bounds are loose (tightness {bounds['tightness']:.2f}): the predictor sees little of what decides "
            "the length here, and Amin then admits much like fcfs."
        )
    busy = {name: mean[name].get("scheduling_share", 0) + mean[name].get("prediction_share", 0) for name in mean}
    most = max(busy, key=lambda name: busy[name])
    lines.append(f"Deciding and predicting took at most {busy[most]:.1%} of the wall time ({most}).")
    return lines


def _tail(ours: str, mean: Mapping[str, Any]) -> str:
    ratio = mean[ours]["p99_latency"] / mean["fcfs"]["p99_latency"]
    text = f"The slowest hundredth (p99) of {ours} took {ratio:.2f} times what it took under fcfs"
    return text + (": short requests overtook long ones." if ratio > 1.02 else ".")
