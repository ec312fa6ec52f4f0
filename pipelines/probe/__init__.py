"""A probe of a served model: its training on collected states, what it measures, and its export."""
