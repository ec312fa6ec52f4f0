"""Export to ONNX: the graph, its own calibration, and a folder that `predictor.serving` reads."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from predictor.export_folder import MANIFEST, MODEL, TOKENIZER, sha256
from predictor.prompts.tokens import INPUT_NAMES
from predictor.spec import PredictorSpec
from predictor.training.model_card import model_card
from predictor.training.network import TorchLengthPredictor

# Raised inside torch and onnx whatever the network; matched by message so that anything new still shows.
HARMLESS_WARNINGS = (
    ".*The axis name: .* will not be used.*",  # both inputs share batch and width on purpose
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)


def write_graph(length_predictor: TorchLengthPredictor, folder: Path, precision: str) -> None:
    """Write `model.onnx` (one file, `precision` fp32 or int8) and `tokenizer.json` into `folder`."""
    spec, network = length_predictor.spec, length_predictor.network.cpu().eval()
    # Of plain operators: onnxruntime's attention is not faster on a CPU, and older versions lack it.
    network.encoder.set_attn_implementation("eager")
    # Two tensors: given one twice, the exporter takes the mask for the tokens without a word.
    input_ids, attention_mask = torch.ones((2, 3), dtype=torch.int64), torch.ones((2, 3), dtype=torch.int64)
    features = torch.ones((2, spec.num_features + len(spec.terms)))
    batch = torch.export.Dim("batch")
    width = torch.export.Dim("width", max=spec.max_prompt_tokens)
    with _quiet():
        program = torch.onnx.export(
            network,
            (input_ids, attention_mask, features),
            dynamo=True,
            opset_version=20,  # the first with an operator for GELU
            input_names=list(INPUT_NAMES),
            output_names=["hazard_logits"],
            dynamic_shapes=({0: batch, 1: width}, {0: batch, 1: width}, {0: batch}),
            verbose=False,
        )
        assert program is not None
        program.save(str(folder / MODEL), external_data=False)
        if precision == "int8":
            _quantize(folder)
    length_predictor.tokenizer.save(str(folder / TOKENIZER))


def _quantize(folder: Path) -> None:
    """Round the weights of `model.onnx` to int8: matrices by column, embeddings as a whole.

    Weights keep to seven bits, since processors without VNNI instructions overflow with eight. The served models'
    residuals, small and three-dimensional, stay as they are.
    """
    exact, small = folder / MODEL, folder / "int8.onnx"
    graph = onnx.load(exact).graph
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    others = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in matrices]
    quantize_dynamic(
        exact,
        small,
        op_types_to_quantize=["MatMul", "Gather"],
        nodes_to_exclude=others,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    small.replace(exact)


def write_manifest(
    folder: Path, spec: PredictorSpec, precision: str, measured: dict[str, Any] | None, name: str, licence: str
) -> None:
    """Write `manifest.json` and `README.md` for the graph in `folder`; `measured` holds what the test split gave.

    `name` is what the folder will be called and `licence` that of its weights, for the README.
    """
    (folder / "README.md").write_text(model_card(spec, precision, measured, name, licence))
    manifest = {
        **spec.to_dict(),
        "precision": precision,
        "measured": measured,
        "sha256": {name: sha256(folder / name) for name in (MODEL, TOKENIZER, "README.md")},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest) + "\n")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep known notes of the exporter from the terminal; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            for message in HARMLESS_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
