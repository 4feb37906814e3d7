"""How durations, moments and names are written and shown. Pure."""
