"""The queue of requests that wait."""
