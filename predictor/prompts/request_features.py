"""All features of a request apart from its tokens and terms: its text's, the length it asks for, and its context."""

from collections.abc import Sequence

import numpy as np

from predictor.errors import InputError
from predictor.prompts.context import CONTEXT_NAMES, UNKNOWN, RequestContext, context_features
from predictor.prompts.features import NAMES, FloatMatrix, text_features
from predictor.prompts.instructions import INSTRUCTION_NAMES, instruction_features

Contexts = Sequence[RequestContext | None] | None
"""One a prompt, or None where nothing is known of any."""

FEATURE_NAMES = (*NAMES, *INSTRUCTION_NAMES, *CONTEXT_NAMES)
"""Names of the columns; a predictor reads the first `num_features` of them, those that there were when it was made."""

HAS_TARGET, LOG_TARGET = (FEATURE_NAMES.index(name) for name in ("asks_length", "log_target"))


def request_features(
    prompts: Sequence[str], num_tokens: Sequence[int], contexts: Contexts = None, num_features: int = len(FEATURE_NAMES)
) -> FloatMatrix:
    """Return the first `num_features` features [N, F] of N requests whose prompts have `num_tokens` encoder tokens.

    Raises:
        InputError: there are not as many contexts as prompts.
    """
    known = [UNKNOWN if context is None else context for context in contexts or [None] * len(prompts)]
    if len(known) != len(prompts):
        raise InputError(f"contexts: {len(known)} for {len(prompts)} prompts; give one a prompt, or None")
    parts = [text_features(prompts, num_tokens)]
    if num_features > len(NAMES):
        pairs = zip(prompts, known, strict=True)
        asked = [instruction_features(prompt, context.system_prompt) for prompt, context in pairs]
        parts.append(np.asarray(asked, dtype=np.float32).reshape(len(prompts), len(INSTRUCTION_NAMES)))
        parts.append(context_features(known))
    return np.hstack(parts)[:, :num_features]
