"""Splits that no near-duplicate crosses, and their audit."""
