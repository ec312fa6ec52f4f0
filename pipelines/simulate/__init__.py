"""Simulated workloads: runs, maps, tuned levels, traces."""
