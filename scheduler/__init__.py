"""Scheduling of LLM requests under a KV-cache budget: policies, one loop, several executors."""
