"""Deployments that exist: a model on given cards under a given engine, with its memory, limits and measured clock."""
