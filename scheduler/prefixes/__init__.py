"""Prompts with equal beginnings, and what stays of a prompt in the cache."""
