"""Any policy, told what the ends and the ages of siblings say of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.forecast import Floats, Forecast
from scheduler.policies.due import DueRequests
from scheduler.policies.siblings.shared_factor import (
    FACTORS,
    ended,
    given_factors,
    moved,
    outlived,
    score,
    survival_at,
    weights,
)
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import Renewal
from scheduler.request import Request

CORRELATION = 0.6
"""Of two siblings' scores: docs/results/siblings.md has the fit to CASTILLO's draws."""
AGES = (0.31, 0.5, 0.69, 0.84, 0.93, 0.977, 0.994, 0.9987)
"""Quantiles of its forecast at which a running request tells its siblings that it lasts: steps of half a deviation."""
STEP = 0.15
"""Deviations of what a group shares that forecasts are moved for."""
MOST_GROUPS = 10_000
"""Groups remembered while none of their requests is there, as between the turns of an agent."""


@dataclass(slots=True)
class _Member:
    """What is kept of a request that has a group.

    Attributes:
        request: As it came.
        forecast: As it came, or drawn through its bounds.
        level: P(length at most the lower bound), by that forecast: the bound moves with the forecast.
        table: Its forecast given what the group shares; siblings with equal forecasts have one.
        says: Log likelihood of what the group shares, from its own age.
        age: Tokens that it is known to exceed.
        step: Place in `AGES` of the next.
        kept: Tokens that it keeps while it waits.
        is_renewed: Whether something else renews its forecast, which knows more than siblings.
    """

    request: Request
    forecast: Forecast
    level: float
    table: Floats
    says: Floats = field(default_factory=lambda: np.zeros_like(FACTORS))
    age: int = 0
    step: int = 0
    kept: int = 0
    is_renewed: bool = False

    def next_age(self) -> int | None:
        """Return the tokens at which it says something again, or None."""
        while self.step < len(AGES):
            age = int(self.forecast.quantile(AGES[self.step])) + 1
            if self.age < age <= self.forecast.edges[-1]:
                return age
            self.step += 1
        return None


@dataclass(slots=True)
class _Group:
    """Requests that share something.

    Attributes:
        members: Those that have not ended, by index.
        says: Log likelihood of what they share, from all that is known of any.
        told: Mean of what they share when forecasts were last moved.
        tables: Of `_Member.table`, by forecast.
    """

    members: dict[int, _Member] = field(default_factory=dict)
    says: Floats = field(default_factory=lambda: np.zeros_like(FACTORS))
    told: float = 0.0
    tables: dict[bytes, Floats] = field(default_factory=dict)


class WithSiblings(Policy):
    """Passes everything on to a policy, and renews forecasts in groups by `Policy.renew`, of waiting requests too."""

    def __init__(self, policy: Policy, correlation: float = CORRELATION) -> None:
        """Start with no group.

        Args:
            policy: A new one; its queue is this one's.
            correlation: Of two siblings' scores, in 0..0.95; 0 moves nothing.

        Raises:
            InputError: The correlation is out of its range.
        """
        if isinstance(correlation, bool) or not isinstance(correlation, int | float) or not 0 <= correlation <= 0.95:
            raise InputError(f"sibling_correlation is {correlation!r}, must be a number from 0 to 0.95")
        self.policy, self._correlation = policy, correlation
        self.worker, self.rng, self.waiting = policy.worker, policy.rng, policy.waiting
        self._members: dict[int, _Member] = {}
        self._groups: dict[str, _Group] = {}
        self._idle: dict[str, None] = {}  # groups without members, the first to become so first
        self._changed: dict[str, None] = {}
        self._due = DueRequests()  # running members, when they say something again

    def add(self, index: int, request: Request) -> None:
        """Take in a request, with what its siblings have said already."""
        if request.group and self._correlation:
            forecast = request.forecast_or_bounds()
            level = min(0.98, 1.0 - survival_at(forecast, request.output_len_lower_bound))
            self._idle.pop(request.group, None)
            group = self._groups.setdefault(request.group, _Group())
            key = forecast.survival.tobytes()
            if key not in group.tables:
                group.tables[key] = given_factors(forecast, self._correlation)
            member = self._members[index] = group.members[index] = _Member(request, forecast, level, group.tables[key])
            if group.says.any():
                request = self._renewal(member, group.says, 0).applied(request)
        self.policy.add(index, request)

    def renew(self, index: int, renewal: Renewal) -> None:
        """Pass it on: what the served model's states say of a request is better than what siblings say."""
        if index in self._members:
            self._members[index].is_renewed = True
        self.policy.renew(index, renewal)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the policy's decision, after telling it what has been learnt; it stands until more is."""
        if not self._members:
            return self.policy.schedule(running)
        self._note_ages(running)
        for name in self._changed:
            self._tell(self._groups[name], running)
        self._changed.clear()
        decision = self.policy.schedule(running)
        for index in decision.preempt:
            if index in self._members:
                self._members[index].kept = running.num_generated(index) if self.worker.resume else 0
                self._due.drop(index)
        for index in decision.admit:
            if index in self._members:
                self._watch(index, running.clock - self._members[index].kept)
        wait = self._due.first - running.clock
        return decision if wait >= decision.valid_for else decision._replace(valid_for=max(1, wait))

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request; its siblings learn from an answer, an answer that was cut being longer than it is."""
        self.policy.end(index, status, num_generated, is_running=is_running)
        member = self._members.pop(index, None)
        if member is None:
            return
        self._due.drop(index)
        group = self._groups[member.request.group]
        if status is Status.ANSWERED:
            is_cut = num_generated >= member.request.max_new_tokens
            says = outlived if is_cut else ended
            length = num_generated - 0.5  # a whole number stands for the tokens around it
            self._say(member, says(score(survival_at(member.forecast, length)), self._correlation))
        del group.members[index]
        if not group.members:
            group.tables.clear()
            self._idle[member.request.group] = None
            if len(self._idle) > MOST_GROUPS:
                first = next(iter(self._idle))
                del self._idle[first], self._groups[first]
                self._changed.pop(first, None)

    def _watch(self, index: int, start: int) -> None:
        """Wait for the next age of a request that has generated the clock less `start` tokens."""
        if (age := self._members[index].next_age()) is not None:
            self._due.put(index, start + age)

    def _note_ages(self, running: RunningBatch) -> None:
        for index in self._due.pop(running.clock):
            member, generated = self._members[index], running.num_generated(index)
            if generated >= (member.next_age() or 0):  # or it got no token for a while
                member.age, member.step = generated, member.step + 1
                own = score(survival_at(member.forecast, generated))
                self._say(member, outlived(own, self._correlation))
            self._watch(index, running.clock - generated)

    def _say(self, member: _Member, says: Floats) -> None:
        """Replace what a request says of its group."""
        group = self._groups[member.request.group]
        group.says = group.says + (says - member.says)
        member.says = says
        self._changed[member.request.group] = None

    def _tell(self, group: _Group, running: RunningBatch) -> None:
        """Renew the forecasts of a group's requests, each by what the others say."""
        mean = float(weights(group.says) @ FACTORS)
        if abs(mean - group.told) < STEP:
            return
        group.told = mean
        for index, member in group.members.items():
            if not member.is_renewed:
                generated = running.num_generated(index) if index in running else member.kept
                self.policy.renew(index, self._renewal(member, group.says - member.says, generated))

    def _renewal(self, member: _Member, says: Floats, generated: int) -> Renewal:
        """Return the forecast that others' ends and ages leave a request."""
        forecast = moved(member.forecast, weights(says), member.table)
        return Renewal(generated, forecast, max(1, int(forecast.conditional_quantile(generated, member.level))))


def siblings_among(requests: Sequence[Request]) -> bool:
    """Return whether any two of the requests are in one group."""
    groups = [request.group for request in requests if request.group]
    return len(set(groups)) < len(groups)
