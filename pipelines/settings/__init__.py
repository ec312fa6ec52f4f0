"""What each stage is asked: one frozen dataclass a stage, from the command line or YAML; imports nothing heavy."""
