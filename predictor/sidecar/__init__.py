"""The HTTP server next to an engine."""
