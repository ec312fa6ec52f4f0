"""Weights of linear layers, laid out once as oneDNN multiplies them on a CPU.

PyTorch keeps a matrix row by row, and oneDNN lays it out anew at each multiplication. With few rows of input, as where
tokens are decoded, that takes up to 0.7 times as long as the product. `torch.compile` freezes weights with the same two
operators.
"""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU; it gives up its rows, so that the weights are kept once."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs (..., in_features) times the weights, plus the bias: (..., out_features)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        return product


def pack_weights(model: nn.Module) -> None:
    """Replace the linear layers of a model that computes in half precision on a CPU, where PyTorch has oneDNN.

    Sums are taken in another order, so that tokens may differ where two are nearly equally likely: leave a model as it
    is where its tokens are compared.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(layer))
