"""The experiments of docs/results/beyond.md: `python -m pipelines.studies.beyond`."""
