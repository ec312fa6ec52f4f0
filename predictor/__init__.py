"""Prompts and lengths: a calibrated lower bound of the response length for each prompt."""

import os as _os

# An import with an effect, the only one: onnxruntime, huggingface_hub, datasets and vLLM report home unless told not to
# before they are imported. What the user has set stays.
for _name, _value in {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}.items():
    _os.environ.setdefault(_name, _value)
