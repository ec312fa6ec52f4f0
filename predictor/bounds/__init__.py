"""Length bins, survival curves, bounds and their calibration; numpy only."""
