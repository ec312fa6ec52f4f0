"""What `amin train` is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pipelines.output.claim import is_launched
from pipelines.settings.option import Metavar
from predictor.errors import InputError
from predictor.records.chat_turns import ChatOptions
from predictor.training.config import TrainConfig

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What makes `amin train` train a probe of a served model in place of a predictor that reads prompts."""

    states: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder that amin collect --states wrote next to the records of --data: train a probe, which reads the served
    model's own states while it answers. Only --data, --seed, --tau, --split-by, --max-prompts and --progress go with
    it."""
    prompt_predictor: Annotated[str | None, Metavar("RUN_OR_EXPORT")] = None
    """Predictor that reads the prompt, to compare the probe with, and to learn how much of each to use together."""

    def __post_init__(self) -> None:
        """Raise InputError for an option that needs the other."""
        if self.prompt_predictor is not None and self.states is None:
            raise InputError("--prompt-predictor: is for a probe; give --states as well")


FOR_PROBES = {"data", "model", "seed", "tau", "split_by", "max_prompts", "progress"}
"""Settings of the training of a predictor that the training of a probe takes, too."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings of `amin train`.

    Examples:
      amin train --data records.parquet --out run
      amin train --data lmsys/lmsys-chat-1m --model vicuna-13b --tokenizer lmsys/vicuna-13b-v1.5 --out run
      amin train --out run --resume
      amin train --data records.parquet --states records.parquet.states --prompt-predictor run --out probe-run
    """

    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on from the last whole epoch in --out, with the settings of that run; a finished run is left alone."""
    force: bool = False
    """Replace the run that is there, once the data is read."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """Data, network and training."""
    conversations: ChatOptions = field(default_factory=ChatOptions)
    """Conversation data."""
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    """Probe of a served model's states."""

    def __post_init__(self) -> None:
        """Raise InputError for an option that a probe does not take."""
        if self.probe.states is None:
            return
        for given in (self.training, self.conversations):
            usual = type(given)()
            for each in fields(given):
                if each.name not in FOR_PROBES and getattr(given, each.name) != getattr(usual, each.name):
                    raise InputError(f"--{each.name.replace('_', '-')}: has no effect with --states; leave it out")

    def defaults(self) -> Mapping[str, Any]:
        """Return what stands where no option is given: the settings of the resumed run, the shape of `--init`.

        Raises:
            InputError: there is neither data nor a run to go on with, or no predictor to start from.
        """
        if (stored := self.stored()) is not None and (self.resume or is_launched()):
            return stored
        if not self.training.data:
            raise InputError("--data is missing: a file of records, or the hub name of a data set")
        return {} if self.training.init is None else shape_of(self.training.init)

    def stored(self) -> Mapping[str, Any] | None:
        """Return the settings that the run in `out` was begun with, one for each option; None without a run."""
        return stored_settings(self.out, "give another --out")


def stored_settings(run: Path, advice: str) -> Mapping[str, Any] | None:
    """Return the settings that a run was begun with, one for each option; None where the folder has none.

    Raises:
        InputError: the file holds no settings; `advice` ends the line.
    """
    import yaml

    file = run / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())}); {advice}") from None
    if not isinstance(value, dict) or "data" not in value:
        raise InputError(f"{file}: not the settings of a run; {advice}")
    names = {each.name for kind in (TrainConfig, ChatOptions, ProbeOptions) for each in fields(kind)}
    if unknown := [name for name in value if name not in names]:
        raise InputError(f"{file}: {unknown[0]!r} is no setting of amin train; {advice}")
    return value


def shape_of(init: str) -> dict[str, Any]:
    """Return the settings that a run has from the predictor it starts from; InputError where there is none."""
    from predictor.training.checkpoint import load_spec

    spec, shape = load_spec(init)
    return {
        "encoder": None,
        "max_length": spec.bins.max_length,
        "num_bins": spec.bins.num_bins,
        "num_terms": shape.num_terms,
        "num_components": shape.num_components,
        "hidden_size": shape.hidden_size,
        "heads": ",".join(shape.heads),
        "max_prompt_tokens": spec.max_prompt_tokens,
    }
