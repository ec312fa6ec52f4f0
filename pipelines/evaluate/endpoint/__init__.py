"""Real generation measured from outside: one running server, or two side by side."""
