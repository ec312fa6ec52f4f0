"""vLLM's CPU build with its own scheduler and with ours, by HTTP: real tokens of a real model."""
