"""A trained probe: the remaining length of an answer from the states of the model that writes it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import BoolArray, FloatArray, lower_bound, survival_from_hazard_logits
from predictor.errors import InputError
from predictor.probe.calibration import StageCalibration
from predictor.probe.conditioned import Mixture
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
        failed: Whether a state was not a number, [N]. Its row says nothing, and the caller keeps the forecast it had;
            with `prompt_survival` it is that of the prompt alone.
    """

    survival: FloatArray
    lower_bounds: IntArray
    failed: BoolArray


@dataclass(frozen=True, slots=True)
class Probe:
    """A network with its bins and calibration, and the one served model and layer that it reads.

    Attributes:
        network: In evaluation mode.
        bins: Of the remaining length.
        source: What the states are of; one layer.
        calibration: Of the network's forecasts.
        mixture: How it goes together with one prompt-only predictor, if it was trained next to one.
    """

    network: ProbeNetwork
    bins: LengthBins
    source: StateSource
    calibration: StageCalibration
    mixture: Mixture | None = None

    @property
    def layer(self) -> int:
        """The hidden state that it reads, counted as transformers does."""
        return self.source.layers[0]

    def renew(
        self, inputs: ProbeInputs, tau: float, *, over_answer: bool = False, prompt_survival: FloatArray | None = None
    ) -> Renewal:
        """Return forecasts and bounds after `generated` tokens.

        Args:
            inputs: Of the answers that go on.
            tau: Probability allowed below the bound.
            over_answer: Whether all bounds of an answer hold together with 1 - tau, not each by itself.
            prompt_survival: What the predictor of the mixture says of them, P(remaining > edge) [N, K+1], by
                `predictor.probe.conditioned.conditioned` on the probe's bins; both together are then read.

        Raises:
            InputError: `tau` is finer than the calibration supports, or the probe knows no mixture.
        """
        survival = remaining_survival(self.network, inputs)
        return self.renewal(survival, inputs.generated, tau, over_answer=over_answer, prompt_survival=prompt_survival)

    def renewal(
        self,
        survival: FloatArray,
        generated: IntArray,
        tau: float,
        *,
        over_answer: bool = False,
        prompt_survival: FloatArray | None = None,
    ) -> Renewal:
        """Return what `renew` does, from what the network gave: P(remaining > edge) [N, K+1], NaN without a state."""
        failed = np.isnan(survival[:, 0])
        calibration = self.calibration
        if prompt_survival is not None:
            if self.mixture is None:
                raise InputError("the probe was trained without a prompt-only predictor; give --prompt-predictor")
            calibration = self.mixture.calibration
            survival = self.mixture.survival(survival, prompt_survival)
        bounds = generated + 1
        known = ~np.isnan(survival[:, 0])
        levels = calibration.levels(tau, generated, over_answer=over_answer)[known]
        bounds[known] = generated[known] + lower_bound(self.bins, survival[known], levels)
        return Renewal(survival, bounds, failed)

    def save(self, folder: Path) -> None:
        """Write `probe.json` and `probe.safetensors`, in half precision, into an existing folder."""
        shape = self.network.shape
        spec = {
            "format": FORMAT,
            "source": self.source.to_dict(),
            "bins": self.bins.to_list(),
            "width": shape.width,
            "calibration": self.calibration.to_dict(),
            "mixture": None if self.mixture is None else self.mixture.to_dict(),
        }
        weights = {name: value.to(torch.float16).contiguous() for name, value in self.network.state_dict().items()}
        (folder / WEIGHTS_FILE).write_bytes(save(weights))  # save_file keeps others from reading it
        text = json.dumps(spec, allow_nan=False, separators=(",", ":"))
        (folder / SPEC_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """Return the probe that `save` wrote; InputError where the folder has none or one that is damaged."""
        path = folder / SPEC_FILE
        if not path.is_file():
            raise InputError(
                f"{folder}: no probe that can be read: {SPEC_FILE} is missing; "
                "give a folder that amin train --states or amin export wrote"
            )
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            if spec["format"] != FORMAT:
                raise InputError(f"{path}: format: must be {FORMAT}, not {spec['format']!r}; train the probe again")
            source = StateSource.from_dict(spec["source"], path)
            bins = LengthBins.from_list(spec["bins"])
            network = ProbeNetwork(ProbeShape(source.hidden_size, bins.num_bins, int(spec["width"])))
            network.load_state_dict(load_file(folder / WEIGHTS_FILE))
            calibration = StageCalibration.from_dict(spec["calibration"])
            mixture = None if spec["mixture"] is None else Mixture.from_dict(spec["mixture"])
        except InputError:
            raise
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: no probe that can be read ({reason}); train it again") from None
        return cls(network.eval(), bins, source, calibration, mixture)


def remaining_survival(network: ProbeNetwork, inputs: ProbeInputs) -> FloatArray:
    """Return P(remaining > edge) [N, K+1], in one batch, on the device and in the type of the network.

    A row whose state was not a number is NaN.
    """
    weight = network.hidden.weight
    with torch.inference_mode():
        states = torch.from_numpy(inputs.states).to(weight.device, weight.dtype)
        counts = torch.from_numpy(np.column_stack([inputs.generated, inputs.num_prompt_tokens]))
        logits = network(states, counts.to(weight.device, weight.dtype))
    return survival_from_logits(logits.float().cpu().numpy())


def survival_from_logits(logits: npt.NDArray[np.float32]) -> FloatArray:
    """Return P(remaining > edge) [N, K+1] from the network's logits [N, K]; a row that is not all numbers is NaN."""
    known = np.isfinite(logits).all(axis=1)
    survival = np.full((len(logits), logits.shape[1] + 1), np.nan)
    survival[known] = survival_from_hazard_logits(logits[known])
    return survival
