"""Leaf modules in which a policy drives a real engine; each imports its engine."""
