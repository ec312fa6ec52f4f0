"""Simulated iterations, made-up arrivals and predictions, and replicas behind a router."""
