"""The tables of docs/results/beyond.md, in markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]
OURS = "amin-survival"
BEATEN = ("amin", "sjf", "tie", "past-future")
HEAVY = 0.8
"""Load from which on the others are to be beaten."""
SAME = 0.005
"""Ratios to hindsight that are no further apart count as equal: with no queue every policy is the same."""


def tables(done: Mapping[str, Cell]) -> str:
    """Return the tables of the cells measured so far, by group, and what follows from all of them."""
    groups: dict[str, list[Cell]] = {}
    for cell in done.values():
        groups.setdefault(cell["group"], []).append(cell)
    parts = []
    for name, cells in groups.items():
        if name == "policies":
            parts += [("policies: mean latency / hindsight's", _by_load(cells)), (f"policies: {OURS}", _detail(cells))]
        elif name in ("ablation", "forecasts", "tau"):
            parts.append((name, _variants(cells)))
        elif name == "stylised":
            parts.append((name, _across(cells, _loads_unnamed)))
        else:
            parts.append((f"{name}: mean latency / hindsight's", _across(cells, _place)))
            parts.append((f"{name}: {OURS}", _detail(cells)))
    if "policies" in groups:
        parts.append(("goals", _goals(groups["policies"])))
    parts.append(("checks", _checks(list(done.values()))))
    return "\n".join(f"## {title}\n\n{text}\n" for title, text in parts)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _load(cell: Cell) -> str:
    return "at once" if cell["load"] is None else f"{cell['load']:g}"


def _place(cell: Cell) -> str:
    return f"{cell['source']}, M {cell['kv_budget']:,}, {_load(cell)}"


def _loads_unnamed(cell: Cell) -> str:
    family, inverse, value = cell["source"].split(":")
    return f"{family}, 1/alpha {inverse}, parameter {value}"


def _figure(variant: Mapping[str, Any], key: str, *, width: bool = False, form: str = ".2f") -> str:
    if key not in variant["mean"]:
        return "-"
    text = format(variant["mean"][key], form)
    return f"{text} ± {variant['interval_95'][key]:.2f}" if width and variant["interval_95"] else text


def _by_load(cells: Sequence[Cell]) -> str:
    cells = sorted(cells, key=lambda cell: -1 if cell["load"] is None else cell["load"])
    rows = [
        [name, *(_figure(cell["variants"][name], "to_hindsight", width=True) for cell in cells)]
        for name in cells[0]["variants"]
    ]
    return markdown(["", *(_load(cell) for cell in cells)], rows)


def _across(cells: Sequence[Cell], place: Callable[[Cell], str]) -> str:
    names = list(cells[0]["variants"])
    rows = [[place(c), *(_figure(c["variants"][name], "to_hindsight", width=True) for name in names)] for c in cells]
    return markdown(["", *names], rows)


def _detail(cells: Sequence[Cell]) -> str:
    header = ["", "gain over fcfs", "/ volume bound", "p99 / fcfs", "worst decile", "evictions", "recomputed"]
    rows = [[_place(cell), *_details(cell["variants"][OURS])] for cell in cells]
    return markdown(header, rows)


def _details(variant: Mapping[str, Any]) -> list[str]:
    return [
        _figure(variant, "gain_over_fcfs", width=True) + "x",
        _figure(variant, "to_bound"),
        _figure(variant, "p99_to_fcfs", width=True),
        _figure(variant, "worst_decile_p99_to_fcfs"),
        _figure(variant, "evictions_per_request"),
        _figure(variant, "recomputed_share", form=".0%"),
    ]


def _variants(cells: Sequence[Cell]) -> str:
    """Return a row a variant and load."""
    header = ["", "load", "/ hindsight", "gain over fcfs", "/ volume bound", "p99 / fcfs", "worst decile", "evictions"]
    by_name: dict[str, list[list[str]]] = {}
    for cell in cells:
        for name, variant in cell["variants"].items():
            row = [name, _load(cell), _figure(variant, "to_hindsight", width=True), *_details(variant)]
            by_name.setdefault(name, []).append(row)
    return markdown([*header, "recomputed"], [row for rows in by_name.values() for row in rows])


def _goals(cells: Sequence[Cell]) -> str:
    """Return the goals of the issue next to what was measured, with the half width of the interval."""
    found = {cell["load"]: cell["variants"][OURS] for cell in cells}
    goals = [
        (None, "to_hindsight", "at once: mean latency / hindsight", "<= 0.80"),
        (None, "to_bound", "at once: mean latency / volume bound", "<= 1.35"),
        (None, "evictions_per_request", "at once: evictions a request", "<= 0.5"),
        (0.95, "to_hindsight", "load 0.95: mean latency / hindsight", "<= 1.0"),
        (0.95, "gain_over_fcfs", "load 0.95: gain over fcfs", ">= 1.4"),
        (0.95, "p99_to_fcfs", "load 0.95: p99 / fcfs", "<= 1.10"),
        (0.95, "recomputed_share", "load 0.95: recomputed", "<= 0.05"),
    ]
    rows = [[text, goal, _figure(found[load], key, width=True)] for load, key, text, goal in goals if load in found]
    return markdown(["figure", "goal", "measured"], rows)


def _checks(cells: Sequence[Cell]) -> str:
    """Return where the policy is worse than fcfs, and where one that it should beat is better."""
    worse, better, compared = [], [], 0
    gains = []
    for cell in cells:
        if cell["group"] == "stylised":
            continue
        for name, variant in cell["variants"].items():
            gain = variant["mean"]["gain_over_fcfs"]
            if name.startswith(OURS):
                gains.append((gain, f"{cell['group']}: {_place(cell)}, {name}"))
                if gain < 1 / 1.1:
                    worse.append(f"{cell['group']}: {_place(cell)}, {name}: {gain:.2f}x")
        if OURS in cell["variants"] and (cell["load"] is None or cell["load"] >= HEAVY):
            ours = cell["variants"][OURS]["mean"]["to_hindsight"]
            for name in set(BEATEN) & set(cell["variants"]):
                compared += 1
                theirs = cell["variants"][name]["mean"]["to_hindsight"]
                if theirs < ours - SAME:
                    better.append(f"{cell['group']}: {_place(cell)}: {name} {theirs:.2f}, {OURS} {ours:.2f}")
    least = "; ".join(f"{gain:.2f}x in {where}" for gain, where in sorted(gains)[:5])
    lines = [
        f"- Never worse than fcfs by more than 10 %: {len(gains) - len(worse)} of {len(gains)} cells. Least: {least}.",
        *(f"  - {line}" for line in worse),
        f"- {', '.join(BEATEN)} beaten or equalled at once and at load >= {HEAVY}: "
        f"{compared - len(better)} of {compared}.",
        *(f"  - {line}" for line in better),
    ]
    return "\n".join(lines) + "\n"
