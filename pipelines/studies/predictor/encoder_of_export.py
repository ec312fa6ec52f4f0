"""The text encoder of an int8 export, scaled back to float32, as a folder that `amin train --encoder` reads."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import AutoConfig, AutoModel

from predictor.errors import InputError
from predictor.export_folder import MODEL, TOKENIZER
from predictor.prompts.features import FloatMatrix

PREFIX = "encoder."
# Nodes between a product of matrices and the addition of its bias, by whose name the matrix is known.
MAX_STEPS_TO_BIAS = 5


def main() -> None:
    """Parse, read back, write."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.studies.predictor.encoder_of_export", description=__doc__
    )
    parser.add_argument("export", type=Path, help="folder that amin export --precision int8 wrote")
    parser.add_argument("--config", type=Path, required=True, help="folder with the config.json of such an encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    args = parser.parse_args()
    weights = encoder_weights(onnx.load(args.export / MODEL).graph)
    config = AutoConfig.from_pretrained(args.config)
    config.num_hidden_layers = 1 + max(
        int(name.split("layer.")[1].split(".")[0]) for name in weights if "layer." in name
    )
    encoder = AutoModel.from_config(config)
    state = encoder.state_dict()
    known = {name: torch.from_numpy(value) for name, value in weights.items() if name in state}
    if missing := {name for name in state if "pooler" not in name} - set(known):
        raise InputError(f"{args.export}: {min(missing)}: not in its graph; give an export of such an encoder in int8")
    encoder.load_state_dict({**state, **known})
    encoder.save_pretrained(args.out)
    shutil.copy(args.export / TOKENIZER, args.out)
    print(f"{args.out}: {config.num_hidden_layers} layers")


def encoder_weights(graph: Any) -> dict[str, FloatMatrix]:
    """Return the weights of the encoder in a graph, by their name there, in float32."""
    stored = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {
        name: np.array(value, dtype=np.float32)
        for name, value in stored.items()
        if name.startswith(PREFIX) and not name.endswith(("_quantized", "_scale", "_zero_point"))
    }
    for node in graph.node:
        if node.op_type == "MatMulInteger" and (bias := _bias_after(node, readers)) is not None:
            found[bias.removesuffix("bias") + "weight"] = _scaled(stored, node.input[1]).T.copy()
        elif node.op_type == "Gather" and node.input[0].startswith(PREFIX):
            found[node.input[0].removesuffix("_quantized")] = _scaled(stored, node.input[0])
    return {name.removeprefix(PREFIX): value for name, value in found.items()}


def _bias_after(node: Any, readers: dict[str, list[Any]]) -> str | None:
    """Return the name of the encoder's bias that is added to a product, None where it is not the encoder's."""
    output = node.output[0]
    for _ in range(MAX_STEPS_TO_BIAS):
        following = readers[output][0]
        if following.op_type == "Add":
            return next((name for name in following.input if name.startswith(PREFIX)), None)
        output = following.output[0]
    return None


def _scaled(stored: dict[str, Any], name: str) -> FloatMatrix:
    base = name.removesuffix("_quantized")
    values = stored[name].astype(np.float32) - stored[f"{base}_zero_point"].astype(np.float32)
    return np.asarray(values * stored[f"{base}_scale"], dtype=np.float32)


if __name__ == "__main__":
    main()
