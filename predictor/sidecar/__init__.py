"""The HTTP server beside an engine."""
