"""What `amin train --states` measures on the test split, by how many tokens are out, and the table it prints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from predictor.bounds.distribution import FloatArray, lower_bound
from predictor.probe.calibration import StageCalibration
from predictor.probe.fit import FittedProbe, ProbeData
from predictor.probe.probe import Probe, remaining_survival
from predictor.probe.quality import Forecasts, by_generated, mean_kendall_tau, over_answers

SHOWN = (("coverage", "coverage", "{:.3f}"), ("pinball", "pinball_loss", "{:.1f}"), ("tau-b", "kendall_tau", "{:.3f}"))
PROBE, CONDITIONED, BOTH = "probe", "conditioned", "both"


def measure(
    fitted: FittedProbe, test: ProbeData, tau: float, prompt: tuple[FloatArray, StageCalibration] | None
) -> dict[str, Any]:
    """Return the measures of the probe, and of the conditioned curve and both where there is one.

    Args:
        fitted: The probe.
        test: The test split.
        tau: Probability allowed below the bounds.
        prompt: What the prompt-only predictor says of the test split, P(remaining > edge) [S, K+1], and its
            calibration by stage: all three are calibrated on the same answers, so that only what they know differs.
    """
    probe = fitted.probe
    survival = remaining_survival(probe.network, test.inputs(fitted.place))
    sources = {PROBE: (survival, probe.calibration)}
    if prompt is not None and probe.mixture is not None:
        sources[CONDITIONED] = prompt
        sources[BOTH] = (probe.mixture.survival(survival, prompt[0]), probe.mixture.calibration)
    return {name: _measures(probe, test, tau, *source) for name, source in sources.items()}


def _measures(
    probe: Probe, test: ProbeData, tau: float, survival: FloatArray, calibration: StageCalibration
) -> dict[str, Any]:
    generated = test.states.generated
    by_stage, together = (
        lower_bound(probe.bins, survival, calibration.levels(tau, generated, over_answer=over_answer))
        for over_answer in (False, True)
    )
    forecasts = Forecasts.read(probe.bins, survival, by_stage)
    measures = by_generated(test, forecasts, tau)
    return {
        "by_generated": measures,
        "mean_kendall_tau_16_to_192": mean_kendall_tau(measures),
        "share_of_answers_with_all_bounds_held": {
            "levels_by_stage": over_answers(test, by_stage),
            "levels_over_answer": over_answers(test, together),
        },
        "tightness_over_answer": float(together.sum() / np.sum(test.remaining)),
    }


def print_table(metrics: Mapping[str, Any], tau: float) -> None:
    """Print the measures, a line for each number of tokens out."""
    parts = metrics["test"]
    print(f"\ntest split, tau {tau} (target coverage {1 - tau:.2f}), of the answers that go on after t tokens;")
    print("pinball in tokens, tau-b of the remaining length")
    print(f"{'':>6}{'':>9}" + "".join(f"{name:>{9 * len(SHOWN)}}" for name in parts))
    titles = "".join(f"{title:>9}" for title, _, _ in SHOWN)
    print(f"{'t':>6}{'answers':>9}" + titles * len(parts))
    for t, row in parts[PROBE]["by_generated"].items():
        cells = [shape.format(part["by_generated"][t][key]) for part in parts.values() for _, key, shape in SHOWN]
        print(f"{t:>6}{row['num_answers']:>9}" + "".join(f"{cell:>9}" for cell in cells))
    for name, part in parts.items():
        shares = part["share_of_answers_with_all_bounds_held"]
        mean = part["mean_kendall_tau_16_to_192"]
        print(
            f"{name}: all bounds of an answer held for {shares['levels_by_stage']:.3f} at the levels by stage, "
            f"{shares['levels_over_answer']:.3f} at the level over the answer"
            + ("" if mean is None else f"; mean tau-b over t = 16 to 192: {mean:.3f}")
        )
