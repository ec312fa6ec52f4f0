"""Studies of the length predictor: what it learns from, what it reaches, and the bundled ones."""
