"""Prompts and lengths: a calibrated lower bound of the response length for each prompt."""
