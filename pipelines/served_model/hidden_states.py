"""Which layers a served model has, and what identifies the states that come out of them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pipelines.served_model.loading import ServedModel
from predictor.errors import InputError
from predictor.probe.states import StateSource


def state_source(served: ServedModel, layers: Sequence[int], option: str = "--states") -> StateSource:
    """Return what the states of these layers are of.

    Args:
        served: The model.
        layers: Counted as transformers does: 0 is the embedding, k the output of layer k.
        option: What the user gave the layers with, for the error.

    Raises:
        InputError: The model has no such layer, or none that states can be read from.
    """
    most = len(decoder_layers(served, option))
    for layer in layers:
        if not 0 <= layer <= most:
            raise InputError(f"{option}: {served.name} has layers 0 (the embedding) to {most}, not {layer}")
    size = int(served.model.config.get_text_config().hidden_size)
    return StateSource(served.name, served.revision, template_digest(served.tokenizer), tuple(layers), size)


def template_digest(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's chat template."""
    return hashlib.sha256(str(getattr(tokenizer, "chat_template", None) or "").encode()).hexdigest()[:16]


def decoder_layers(served: ServedModel, option: str = "--states") -> Sequence[nn.Module]:
    """Return the layers of the model in order; layer k of a `StateSource` is what number k - 1 gives out.

    Raises:
        InputError: The model is not made of layers that hand a state on.
    """
    config = served.model.config.get_text_config()
    wanted = getattr(config, "num_hidden_layers", None)
    for module in served.model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted and hasattr(config, "hidden_size"):
            return list(module)
    raise InputError(f"served model {served.name!r} has no hidden states that can be read; leave {option} out")


@contextmanager
def captured(served: ServedModel, layers: Sequence[int]) -> Iterator[Mapping[int, Tensor]]:
    """Yield a mapping that holds, after each forward pass, the states that these layers gave out, [B, T, H] each."""
    found: dict[int, Tensor] = {}
    modules, hooks = decoder_layers(served), []

    def keep(layer: int, states: Any) -> None:
        found[layer] = states[0] if isinstance(states, tuple) else states

    def after(layer: int) -> Any:
        return lambda module, inputs, output: keep(layer, output)

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        keep(0, inputs[0] if inputs else named["hidden_states"])

    for layer in layers:
        if layer == 0:
            hooks.append(modules[0].register_forward_pre_hook(before, with_kwargs=True))
        else:
            hooks.append(modules[layer - 1].register_forward_hook(after(layer)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
