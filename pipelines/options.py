"""Checks of command line options that several stages have."""

import argparse

from predictor.errors import InputError


def require_at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """Raise InputError for an option below `least`; one that is None was not given."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}, must be >= {least}")
