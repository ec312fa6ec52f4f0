"""Would length-aware scheduling pay for a user? Their log, simulated, on one page."""
