"""Would length-aware scheduling pay for the user's own requests? One page, and the same on the terminal."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from pipelines.assess.comparison import LIMIT, NOW, STEPS, compare, load_factor, queues
from pipelines.assess.log import (
    Demand,
    Log,
    demand,
    one_replica,
    poisson_at,
    prompts_and_lengths,
    quick_skill,
    read_log,
)
from pipelines.assess.page import write_page
from pipelines.assess.verdict import HEADER, Setting, capacity_text, rows, seconds, verdict
from pipelines.files import write_json
from pipelines.results import print_table
from pipelines.settings.assess import AssessSettings
from pipelines.simulate.workers import described, make_worker
from scheduler.deployments.deployment import read_deployment
from scheduler.errors import InputError
from scheduler.policies import POLICIES
from scheduler.worker import Worker
from scheduler.workload import Workload

ASSUMED_SKILL = 0.4
ASSUMED_LOADS = (0.7, 0.9, 1.1)
NAMES = {NOW: "fcfs (now)", LIMIT: "lengths known in advance"}


def run(settings: AssessSettings) -> None:
    """Simulate the log, write the page, print the answer.

    Raises:
        InputError: The log cannot be read, or an option is out of its range.
    """
    if settings.policy not in POLICIES:
        raise InputError(f"--policy: unknown policy {settings.policy!r}; choose from {', '.join(POLICIES)}")
    worker = make_worker(settings.worker)
    log, how_read = read_log(settings.logs, worker, settings.requests, settings.time_unit)
    print(how_read)
    skill, skill_text = _skill(settings)
    wanted = demand(log.workload, worker)
    replicas, replicas_text = _replicas(settings, wanted, log)
    assessed = _assess(settings, worker, _loads(log, wanted, replicas), skill, has_times=log.has_times)
    verdicts = [f"{_prefix(each, assessed)}{verdict(each, settings.policy)}" for each in assessed]
    pays = [each.pays(settings.policy) for each in assessed]
    verdicts += [capacity_text(each, replicas) for each in assessed if log.has_times and each.pays(settings.policy)]
    facts = {
        "title": f"Would length-aware scheduling pay? {settings.logs.name} on {settings.worker.deployment}",
        "verdicts": verdicts,
        "pays": pays + [True] * (len(verdicts) - len(pays)),
        "notes": _notes(settings, log, wanted, skill_text, replicas_text),
    }
    write_page(settings.out / "assess.html", facts, assessed, NAMES)
    write_json(settings.out / "assess.json", _json(facts, assessed, skill, replicas, wanted))
    for each in assessed:
        print(f"\n{each.name}")
        print_table(list(HEADER), rows(each, NAMES))
    print("\n" + "\n".join(verdicts))
    print(f"\n{settings.out / 'assess.html'}")


def _skill(settings: AssessSettings) -> tuple[float, str]:
    """Return the share of the variance of log length that predictions are to explain, and where it is from."""
    if settings.skill is not None:
        return settings.skill, f"assumed to explain {settings.skill:.0%} of the variance of log length (--skill)"
    found = prompts_and_lengths(settings.logs)
    if found is None:
        return ASSUMED_SKILL, (
            f"assumed to explain {ASSUMED_SKILL:.0%} of the variance of log length, as our predictors do on chats: "
            f"this log has no prompts to measure it with"
        )
    skill = quick_skill(*found)
    return skill, (
        f"a quick fit on the words of {len(found[0]):,} prompts explains {skill:.0%} of the variance of log length of "
        f"those held out; amin train reads more than words"
    )


def _replicas(settings: AssessSettings, wanted: Demand, log: Log) -> tuple[int, str]:
    """Return how many replicas serve, and why so many."""
    given = settings.worker.replicas
    if not log.has_times:
        return given, f"{given} (the log has no times, so loads are assumed)"
    load = wanted.load(given)
    if load <= 1.2 or not settings.grow:
        return given, f"{given}, at a load of {load:.2f} in the busiest stretch"
    needed = wanted.replicas_needed()
    return (
        needed,
        f"{needed}: the log asks {load:.1f} times what {given} can serve (--no-grow keeps them)",
    )


def _loads(log: Log, wanted: Demand, replicas: int) -> Sequence[tuple[str, float, Workload]]:
    """Return name, load and requests of a replica for each load to assess."""
    if log.has_times:
        load = wanted.load(replicas)
        return [(f"With the times of the log (load {load:.2f})", load, one_replica(log.workload, replicas))]
    return [
        (f"At an assumed load of {load:g} (Poisson)", load, poisson_at(log.workload, load * wanted.capacity, 0))
        for load in ASSUMED_LOADS
    ]


def _assess(
    settings: AssessSettings,
    worker: Worker,
    loads: Sequence[tuple[str, float, Workload]],
    skill: float,
    *,
    has_times: bool,
) -> list[Setting]:
    seeds = range(settings.seed, settings.seed + settings.seeds)
    policies = list(dict.fromkeys((settings.policy, "sjf", LIMIT)))
    total = len(loads) * ((len(policies) + 1) * len(seeds) + STEPS * has_times)
    found = []
    with tqdm(total=total, desc="assess", unit="run", disable=not settings.progress) as bar:
        for name, load, workload in loads:
            has_queue = queues(workload, worker)
            compared = compare(policies, workload, worker, skill, seeds if has_queue else seeds[:1], bar.update)
            setting = Setting(name, load, compared, 1.0)
            if has_times and setting.pays(settings.policy):
                factor = load_factor(settings.policy, workload, worker, skill, settings.seed, bar.update, load)
                setting = replace(setting, load_factor=factor)
            found.append(setting)
    return found


def _prefix(setting: Setting, assessed: Sequence[Setting]) -> str:
    return "" if len(assessed) == 1 else f"At a load of {setting.load:g}: "


def _notes(
    settings: AssessSettings, log: Log, wanted: Demand, skill_text: str, replicas_text: str
) -> list[tuple[str, str]]:
    """Return what the page says of how it was worked out."""
    deployment = read_deployment(str(settings.worker.deployment))
    count = len(log.workload.requests)
    stretch = f"{log.rows:,} requests"
    if log.has_times:
        stretch += f" over {seconds(log.span)}"
    if count < log.rows - log.too_large:
        stretch += f"; the busiest {count:,} in a row were simulated"
    if log.too_large:
        stretch += f"; {log.too_large:,} that a replica cannot hold were left out"
    error, cards = deployment.clock_error, f"{deployment.tensor_parallel} x {deployment.hardware}"
    return [
        ("Log", stretch),
        (
            "Deployment",
            f"{described(settings.worker)}: {deployment.model}, {cards} a replica",
        ),
        ("Clock", f"{deployment.source}" + (f"; off by {error.median:.0%} in the median iteration" if error else "")),
        ("Replicas", replicas_text),
        ("A replica serves", f"about {wanted.capacity:.2f} of these requests a second, by KV cache or slots"),
        ("Predictions", skill_text),
        ("fcfs", "vLLM's default order and eviction, simulated; not measured on your servers"),
        (
            "Not in here",
            "equal beginnings of prompts that the log does not tell of, the time of a prediction (a few "
            "milliseconds), and that clients may ask otherwise when they wait less",
        ),
    ]


def _json(
    facts: dict[str, Any], assessed: Sequence[Setting], skill: float, replicas: int, wanted: Demand
) -> dict[str, Any]:
    settings = [
        {
            "name": each.name,
            "load": each.load,
            "load_factor": each.load_factor,
            "policies": {
                name: {"mean": dict(c.mean), "gain": c.gain, "interval_95": c.interval, "p99_to_fcfs": c.tail}
                for name, c in each.compared.items()
            },
        }
        for each in assessed
    ]
    return {
        "verdicts": facts["verdicts"],
        "pays": facts["pays"][: len(assessed)],
        "skill": skill,
        "replicas": replicas,
        "demand": asdict(wanted),
        "settings": settings,
        "notes": [list(pair) for pair in facts["notes"]],
    }
