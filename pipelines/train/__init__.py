"""Training of the predictor: settings, the fit, its results."""
