"""States of prompts alone, read next to an engine that runs the same model; nothing stays in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.served_model.answer_states import Enough, passes, up_to
from pipelines.served_model.hidden_states import captured
from pipelines.served_model.loading import ServedModel


def prompt_states(served: ServedModel, layer: int, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return last state, recent mean and prompt mean of each prompt, [N, 3, H].

    They are those that the engine has right after a prefill: of the recent states only the last one counts, that of the
    prompt's last token. Prompts of like length share a forward pass, which ends after the layer.
    """
    found = np.empty((len(prompts), 3, int(served.model.config.get_text_config().hidden_size)), dtype=np.float32)
    with captured(served, [layer]) as given, up_to(served, layer), _outside_an_engine(served), torch.inference_mode():
        for batch in passes([len(prompt) for prompt in prompts]):
            longest = max(len(prompts[k]) for k in batch)
            rows = [[*prompts[k], *[0] * (longest - len(prompts[k]))] for k in batch]
            # Padding follows what counts, where a causal model does not look: no mask is needed.
            with suppress(Enough):
                served.model.get_decoder()(input_ids=torch.tensor(rows, device=served.model.device), use_cache=False)
            for row, k in enumerate(batch):
                states = given[layer][row, : len(prompts[k])].float()
                found[k] = torch.stack([states[-1], states[-1], states.mean(dim=0)]).cpu().numpy()
    return found


@contextmanager
def _outside_an_engine(served: ServedModel) -> Iterator[None]:
    """Let the model attend as it does without an engine: an engine's attention may ask for its cache."""
    config = served.model.config.get_text_config()
    name, config._attn_implementation = config._attn_implementation, "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = name
