"""What reproduces docs/results; no stage imports it."""
