"""A log reduced to what training needs: lengths, states of a frozen encoder and features; no text.

The text of a prompt becomes what the heads read of it: pooled states of an encoder, features (counts, flags, the length
asked for) and its terms projected to a few numbers. A random name takes its place, the same for its draws of all served
models. States are no cipher: who has the encoder can guess at topics. They cannot be read.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray, survival_from_hazard_logits
from predictor.errors import InputError
from predictor.json_file import read_object
from predictor.progress import tracked
from predictor.prompts.request_features import Contexts
from predictor.prompts.tokens import PromptInputs, batches_by_length, encode_prompts
from predictor.records.chat_turns import ChatOptions
from predictor.records.prompt_table import prompt_table, served_models
from predictor.records.records import Records
from predictor.records.without_text import REDUCED, REDUCED_RECORDS
from predictor.spec import LengthPredictorLike, PredictorSpec
from predictor.training.checkpoint import versions
from predictor.training.config import TrainConfig
from predictor.training.data import PooledPrompts, encode_table
from predictor.training.head_start import (
    fit_component_scaling,
    fit_feature_scaling,
    fit_state_scaling,
    start_at_marginal,
)
from predictor.training.heads import mean_of_heads
from predictor.training.network import FrozenNetwork, HazardNetwork, NetworkShape, TorchLengthPredictor

FACTS, RECORDS, STATES = REDUCED, REDUCED_RECORDS, "states.npz"
CHUNK_SIZE, BATCH_SIZE = 128, 64


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """What the heads read of P prompts, by the name of each: pooled [P, 2 W], features [P, F], components [P, C]."""

    names: tuple[str, ...]
    pooled: torch.Tensor
    features: torch.Tensor
    components: torch.Tensor

    @property
    def heads_input(self) -> torch.Tensor:
        """Features and components side by side, [P, F + C]."""
        return torch.cat([self.features, self.components], dim=1)

    def rows(self, names: Sequence[str]) -> list[int]:
        """Return the places of prompts; InputError for one that is not there."""
        places = {name: place for place, name in enumerate(self.names)}
        if missing := [name for name in names if name not in places]:
            raise InputError(f"{STATES}: no states of prompt {missing[0]}; reduce the log again")
        return [places[name] for name in names]


def reduced(records: Records, source: TorchLengthPredictor, *, shown: bool = False) -> tuple[Records, States]:
    """Return the records without text, a random name in place of each prompt, and the states that go with the names.

    Contexts are in the features; identities, groups and times of arrival are left out.
    """
    table = prompt_table(records, served_models(records))
    names = tuple(secrets.token_hex(16) for _ in table.prompts)
    prompts = [""] * len(records)
    for row, name in enumerate(names):
        for place in table.places[row][table.places[row] >= 0]:
            prompts[place] = name
    numbers = tuple(f"row-{number}" for number in range(len(records)))
    bare = replace(
        records,
        prompts=tuple(prompts),
        prompt_ids=numbers,
        contexts=None,
        groups=None,
        classes=None,
        arrival_times=None,
    )
    return bare, states_of(table.prompts, table.contexts, names, source, shown=shown)


def states_of(
    prompts: Sequence[str], contexts: Contexts, names: tuple[str, ...], source: TorchLengthPredictor, *, shown: bool
) -> States:
    """Return what the heads of `source` read of requests, each to be known by a name."""
    spec, network = source.spec, source.network
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    terms = np.asarray(spec.terms, dtype=np.int64)
    starts = range(0, len(names), CHUNK_SIZE)
    for start in tracked(starts, "read prompts", "chunk", len(starts), shown=shown):
        rows = slice(start, start + CHUNK_SIZE)
        known = None if contexts is None else contexts[rows]
        inputs = encode_prompts(
            source.tokenizer, prompts[rows], spec.max_prompt_tokens, terms, known, spec.num_features
        )
        parts.append(_read(network, inputs, spec.pad_token_id))
    pooled, features, components = (torch.cat(column) for column in zip(*parts, strict=True))
    return States(names, pooled, features, components)


def _read(
    network: HazardNetwork, inputs: PromptInputs, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size, count = len(inputs), network.shape.num_features
    pooled = torch.zeros(size, network.scaling.pooled_mean.shape[0])
    components = torch.zeros(size, network.shape.num_components)
    with torch.inference_mode():
        for indices in batches_by_length(inputs.token_ids, BATCH_SIZE):
            ids, mask, features = (torch.as_tensor(array) for array in inputs.batch(indices, pad_token_id))
            pooled[indices] = network.pooled(ids, mask).float()
            components[indices] = network.scaling.project(features[:, count:])
    return pooled, torch.as_tensor(inputs.features), components


def write_states(folder: Path, states: States, facts: Mapping[str, Any]) -> None:
    """Write states and `facts` into the existing `folder`; pooled states in half precision."""
    np.savez(
        folder / STATES,
        names=np.asarray(states.names),
        pooled=states.pooled.numpy().astype(np.float16),
        features=states.features.numpy(),
        components=states.components.numpy(),
    )
    (folder / FACTS).write_text(json.dumps(dict(facts), indent=2) + "\n")


def is_reduced(data: str) -> bool:
    """Return whether `data` is a folder that `amin reduce` wrote."""
    return (Path(data) / FACTS).is_file()


def read_states(folder: Path) -> tuple[States, dict[str, Any]]:
    """Return the states and the facts of a folder that `amin reduce` wrote; InputError where it is not whole."""
    facts = read_object(folder / FACTS, "reduce the log again")
    try:
        with np.load(folder / STATES, allow_pickle=False) as stored:
            columns = [
                torch.from_numpy(stored[name].astype(np.float32)) for name in ("pooled", "features", "components")
            ]
            return States(tuple(stored["names"].tolist()), *columns), dict(facts)
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / STATES}: cannot be read ({reason}); reduce the log again") from None


class HeadsOnStates(LengthPredictorLike):
    """A predictor in training that reads prompts by the names of their states."""

    def __init__(self, whole: TorchLengthPredictor, states: States) -> None:
        """Take the network, tokenizer and specification of `whole`, which is what is saved."""
        self.network, self.tokenizer, self.spec = whole.network, whole.tokenizer, whole.spec
        self.states = states

    def survivals(self, prompts: Sequence[str], contexts: Contexts = None) -> FloatArray:
        """Return the predicted survival [N, M, K+1] of N prompts, given by name."""
        rows = self.states.rows(prompts)
        batch = {"pooled": self.states.pooled[rows], "features": self.states.heads_input[rows]}
        frozen = FrozenNetwork(self.network, is_projected=True).eval()
        with torch.inference_mode():
            logits = mean_of_heads(frozen.logits_by_head(batch))
        return survival_from_hazard_logits(logits.float().numpy())

    def pooled(self, records: Records) -> PooledPrompts:
        """Return the prompts of `records` as the heads take them, with what each served model answered."""
        table = prompt_table(records, self.spec.models)
        rows = self.states.rows(table.prompts)
        no_terms = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        bare = PromptInputs([[] for _ in rows], self.states.features[rows].numpy(), [no_terms] * len(rows), 0)
        return PooledPrompts(
            self.states.pooled[rows], self.states.heads_input[rows], encode_table(table, bare, self.spec.bins)
        )

    def start(self, train: PooledPrompts, config: TrainConfig) -> None:
        """Fit the scaling to the training prompts and let the heads begin at the marginal distribution."""
        torch.manual_seed(config.seed)
        count = self.network.shape.num_features
        fit_state_scaling(self.network, train)
        fit_feature_scaling(self.network, train.features[:, :count])
        fit_component_scaling(self.network, train.features[:, count:])
        start_at_marginal(self.network, train)


def heads_on_states(
    source: TorchLengthPredictor,
    states: States,
    bins: LengthBins,
    models: tuple[str, ...],
    default: str,
    config: TrainConfig,
    chat_options: ChatOptions,
) -> HeadsOnStates:
    """Return a predictor for `models` with new heads on the encoder, terms and projection of `source`."""
    spec, old = source.spec, source.network
    new_spec = PredictorSpec(
        bins, spec.max_prompt_tokens, spec.pad_token_id, models, default, spec.terms, {}, versions(),
        chat_options.context_turns, chat_options.context_characters, spec.num_features,
    )  # fmt: skip
    new_spec.choose()
    shape = NetworkShape(
        len(models), len(spec.terms), old.shape.num_components, config.hidden_size, tuple(config.heads.split(",")),
        spec.num_features,
    )  # fmt: skip
    network = HazardNetwork(old.encoder, bins, shape, config.dropout)
    network.scaling.term_idf.copy_(old.scaling.term_idf)
    network.scaling.term_components.copy_(old.scaling.term_components)
    return HeadsOnStates(TorchLengthPredictor(network, source.tokenizer, new_spec), states)


def facts_of(source_sha256: str, chat_options: ChatOptions, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stated beside the states: what read the prompts, and what became of the rows."""
    return {"source_sha256": source_sha256, "conversations": asdict(chat_options), "data": dict(report)}
