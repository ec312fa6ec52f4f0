"""Network, losses, Lightning, checkpoints and export; all of torch is here."""
