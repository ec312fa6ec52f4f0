"""The model that is served: loading it, its chat template, and answers from it."""
