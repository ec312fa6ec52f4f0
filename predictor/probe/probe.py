"""A trained probe: the remaining length of an answer from the states of the model that writes it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import BoolArray, FloatArray, lower_bound, survival_from_hazard_logits
from predictor.errors import InputError
from predictor.probe.calibration import StageCalibration
from predictor.probe.network import ProbeNetwork, ProbeShape
from predictor.probe.states import StateSource

FORMAT = 1
SPEC_FILE = "probe.json"
WEIGHTS_FILE = "probe.safetensors"


@dataclass(frozen=True, slots=True)
class ProbeInputs:
    """What the network reads of N states.

    Attributes:
        states: Last state, recent mean, prompt mean, [N, 3, H].
        generated: Tokens that were out, [N].
        num_prompt_tokens: Of the prompt, [N].
    """

    states: npt.NDArray[np.float32]
    generated: IntArray
    num_prompt_tokens: IntArray

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True, slots=True)
class Renewal:
    """Forecasts of N answers that go on.

    Attributes:
        survival: P(remaining > edge) on the probe's bins, [N, K+1].
        lower_bounds: Bounds of the whole length, generated tokens included, [N].
        failed: Whether a state was not a number; its row says nothing, and the caller keeps the forecast it had, [N].
    """

    survival: FloatArray
    lower_bounds: IntArray
    failed: BoolArray


@dataclass(frozen=True, slots=True)
class Probe:
    """A network with its bins and calibration, and the one served model and layer that it reads."""

    network: ProbeNetwork
    bins: LengthBins
    source: StateSource
    calibration: StageCalibration

    @property
    def layer(self) -> int:
        """The hidden state that it reads, counted as transformers does."""
        return self.source.layers[0]

    def renew(self, inputs: ProbeInputs, tau: float, *, over_answer: bool = False) -> Renewal:
        """Return forecasts and bounds after `generated` tokens.

        Args:
            inputs: Of the answers that go on.
            tau: Probability allowed below the bound.
            over_answer: Whether all bounds of an answer hold together with 1 - tau, not each by itself.

        Raises:
            InputError: `tau` is finer than the calibration supports.
        """
        survival = remaining_survival(self.network, inputs)
        failed = np.isnan(survival[:, 0])
        if over_answer:
            levels = np.full(len(inputs), self.calibration.level_over_answer(tau))
        else:
            by_count = {int(t): self.calibration.level(tau, int(t)) for t in np.unique(inputs.generated)}
            levels = np.array([by_count[int(t)] for t in inputs.generated])
        bounds = inputs.generated + 1
        known = ~failed
        bounds[known] = inputs.generated[known] + lower_bound(self.bins, survival[known], levels[known])
        return Renewal(survival, bounds, failed)

    def save(self, folder: Path) -> None:
        """Write `probe.json` and `probe.safetensors` into an existing folder."""
        shape = self.network.shape
        spec = {
            "format": FORMAT,
            "source": self.source.to_dict(),
            "bins": self.bins.to_list(),
            "width": shape.width,
            "calibration": self.calibration.to_dict(),
        }
        save_file(
            {name: value.contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS_FILE
        )
        (folder / SPEC_FILE).write_text(json.dumps(spec, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """Return the probe that `save` wrote; InputError where the folder has none or one that is damaged."""
        path = folder / SPEC_FILE
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            if spec["format"] != FORMAT:
                raise InputError(f"{path}: format: must be {FORMAT}, not {spec['format']!r}; train the probe again")
            source = StateSource.from_dict(spec["source"], path)
            bins = LengthBins.from_list(spec["bins"])
            network = ProbeNetwork(ProbeShape(source.hidden_size, bins.num_bins, int(spec["width"])))
            network.load_state_dict(load_file(folder / WEIGHTS_FILE))
            calibration = StageCalibration.from_dict(spec["calibration"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: no probe that can be read ({reason}); train it again") from None
        return cls(network.eval(), bins, source, calibration)


def remaining_survival(network: ProbeNetwork, inputs: ProbeInputs) -> FloatArray:
    """Return P(remaining > edge) [N, K+1], in one batch, on the device and in the type of the network.

    A row whose state was not a number is NaN.
    """
    weight = network.hidden.weight
    with torch.inference_mode():
        states = torch.from_numpy(inputs.states).to(weight.device, weight.dtype)
        counts = torch.from_numpy(np.column_stack([inputs.generated, inputs.num_prompt_tokens]))
        logits = network(states, counts.to(weight.device, weight.dtype))
    values = logits.float().cpu().numpy()
    known = np.isfinite(values).all(axis=1)
    survival = np.full((len(values), values.shape[1] + 1), np.nan)
    survival[known] = survival_from_hazard_logits(values[known])
    return survival
