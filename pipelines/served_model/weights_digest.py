"""What tells the weights of one model from those of another."""

import hashlib

import torch
from torch import nn

SAMPLED = 64
"""Values of each weight that go into the hash of a model: enough to tell models apart, quick where they are large."""


def weights_digest(model: nn.Module) -> str:
    """Return a hash of the names and shapes of all weights and of some values of each.

    It is the same in every precision that a model is loaded in: the values are rounded to bfloat16.
    """
    hashed = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].to("cpu", torch.bfloat16)
        hashed.update(f"{name} {tuple(weight.shape)}\n".encode() + some.view(torch.int16).numpy().tobytes())
    return hashed.hexdigest()[:16]
