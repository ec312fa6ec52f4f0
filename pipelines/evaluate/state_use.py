"""What one run makes of the served model's states: forecasts renewed as requests run, and prompts read ahead."""

from collections.abc import Mapping

from pipelines.evaluate.case import DEFAULT_TAU
from pipelines.probe.read_ahead import ModelReader
from pipelines.probe.renewed_bounds import RenewedBounds
from pipelines.probe.use import ProbeRenewals, is_mixed, state_reader
from pipelines.served_model.loading import ServedModel
from pipelines.settings.evaluate import EvaluateSettings
from predictor.probe.probe import Probe
from scheduler.look_ahead import LookAhead
from scheduler.renewals import Renewal
from scheduler.request import Request


class StateUse:
    """A probe in one run; `close` takes its hook off the model."""

    def __init__(self, probe: Probe, settings: EvaluateSettings, served: ServedModel, prompts: list[list[int]]) -> None:
        """Hook the model; prompts are token ids by request index."""
        mixed = is_mixed(probe, settings.predictor)
        bounds = RenewedBounds(probe, settings.tau or DEFAULT_TAU, served.model.device, is_mixed=mixed)
        self.states = state_reader(probe, served, settings.max_batch_tokens)
        self.renewals = ProbeRenewals(bounds, self.states, self._request, settings.renew_every, keeps=True)
        self.look_ahead: LookAhead | None = None
        self._reader: ModelReader | None = None
        if settings.look_ahead is not None:
            self._reader = ModelReader(bounds, probe.layer, served, prompts, self._request)
            self.look_ahead = LookAhead(settings.look_ahead, self._reader)
        self.handed_over: Mapping[int, Request] = {}
        """Requests by index, with their first predictions, once a policy has them."""

    def _request(self, index: int) -> Request:
        return self.handed_over[index]

    def close(self) -> None:
        """Take the hook off."""
        self.states.close()

    def given(self) -> dict[int, list[Renewal]]:
        """Return what the policy got, by request and tokens out."""
        given = self.renewals.in_order()
        for index, renewal in self._reader.given.items() if self._reader else ():
            given[index] = [renewal, *given.get(index, ())]
        return given

    def figures(self, wall: float) -> dict[str, float]:
        """Return counts, and shares of `wall` seconds."""
        bounds = self.renewals.bounds
        figures: dict[str, float] = {
            "renewal_share": self.renewals.all_seconds / wall,
            "num_renewals": bounds.num_renewed,
            "num_failed_states": bounds.num_failed,
        }
        if self._reader is not None:
            figures |= {
                "look_ahead_share": self._reader.seconds / wall,
                "num_read_ahead": len(self._reader.given),
                "num_tokens_read_ahead": self._reader.num_tokens,
            }
        return figures
