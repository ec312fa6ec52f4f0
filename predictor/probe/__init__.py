"""Bounds from the served model's own states, renewed as it decodes; torch is allowed here, as in training."""
