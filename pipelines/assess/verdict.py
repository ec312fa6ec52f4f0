"""What an assessment says: whether it pays here, what it costs, and what it would save."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.assess.comparison import LEAST_WAIT, LIMIT, NOW, Compared

LEAST_GAIN = 1.05
DEAR_TAIL = 1.25


@dataclass(frozen=True, slots=True)
class Setting:
    """One load that was assessed.

    Attributes:
        name: What it is: the log's own times, or a load that was assumed.
        load: As a share of what can be served; None where it was not worked out.
        compared: By policy, fcfs first.
        load_factor: How many times the load the policy carries at fcfs's mean latency.
    """

    name: str
    load: float | None
    compared: Mapping[str, Compared]
    load_factor: float

    def pays(self, policy: str) -> bool:
        """Return whether requests wait at all, and the policy is faster by more than chance and 5 %."""
        ours = self.compared[policy]
        return ours.gain - ours.interval > 1 and ours.gain >= LEAST_GAIN

    def waits(self) -> float:
        """Return which share of its latency a request waits under fcfs."""
        now = self.compared[NOW].mean
        return float(now["mean_queueing_delay"] / now["mean_latency"])


def verdict(setting: Setting, policy: str) -> str:
    """Return the answer in a few sentences."""
    now, ours = setting.compared[NOW], setting.compared[policy]
    if setting.waits() < LEAST_WAIT and now.mean["recomputed_share"] < LEAST_WAIT:
        return (
            f"It does not pay here: requests wait {seconds(now.mean['mean_queueing_delay'])} of "
            f"{seconds(now.mean['mean_latency'])}, so there is no queue to put in order."
        )
    if not setting.pays(policy):
        return (
            f"It does not pay here: requests wait {seconds(now.mean['mean_queueing_delay'])} of "
            f"{seconds(now.mean['mean_latency'])}, and {policy} is {gain_text(ours)} in mean latency (first token "
            f"{seconds(ours.mean['mean_ttft'])}, not {seconds(now.mean['mean_ttft'])}). With every length known in "
            f"advance it would be {setting.compared[LIMIT].gain:.2f} times."
        )
    tail = (
        f"The slowest 1 % take {ours.tail:.2f} times as long as now" if ours.tail > 1 else "The slowest 1 % gain, too"
    )
    warning = "; mind that before you switch." if ours.tail > DEAR_TAIL else "."
    return (
        f"It pays: a request takes {seconds(ours.mean['mean_latency'])}, not {seconds(now.mean['mean_latency'])} "
        f"({gain_text(ours)}), its first token {seconds(ours.mean['mean_ttft'])} in place of "
        f"{seconds(now.mean['mean_ttft'])}. {tail}{warning}"
    )


def gain_text(compared: Compared) -> str:
    """Return a gain with its interval, or that it is not told from none."""
    if compared.gain - compared.interval <= 1:
        return f"not measurably faster than fcfs ({compared.gain:.2f} ± {compared.interval:.2f})"
    return f"{compared.gain:.2f} ± {compared.interval:.2f} times faster than fcfs"


def capacity_text(setting: Setting, replicas: int) -> str:
    """Return what the same mean latency would take."""
    if setting.load_factor < 1.01:
        return "At the mean latency of now it would carry hardly more load (less than 1.05 times)."
    needed = replicas / setting.load_factor
    text = f"At the mean latency of now it would carry {setting.load_factor:.2f} times the load"
    if replicas == 1:
        return f"{text}: 100 replicas would do what {100 * setting.load_factor:.0f} do."
    return f"{text}: {max(1, -(-int(needed * 100) // 100))} replicas in place of {replicas}."


def seconds(value: float) -> str:
    """Return a time in a unit that suits it."""
    if value >= 7200:
        return f"{value / 3600:.1f} hours"
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def rows(setting: Setting, names: Mapping[str, str]) -> list[list[str]]:
    """Return the table of one load, a row a policy."""
    table = []
    for name, compared in setting.compared.items():
        mean: Any = compared.mean
        table.append(
            [
                names.get(name, name),
                seconds(mean["mean_latency"]),
                "1" if name == NOW else f"{compared.gain:.2f} ± {compared.interval:.2f}",
                seconds(mean["mean_ttft"]),
                seconds(mean["p99_latency"]),
                f"{compared.tail:.2f}",
                f"{mean['recomputed_share']:.0%}",
                f"{mean['mean_kv_utilization']:.0%}",
            ]
        )
    return table


HEADER = ("policy", "mean latency", "times faster", "first token", "p99", "p99 / now", "recomputed", "KV use")
