"""Deployments from measured kernels, or from a server's own log."""
