"""Requests whose lengths are alike: when one ends, or lasts, the forecasts of the others move."""
