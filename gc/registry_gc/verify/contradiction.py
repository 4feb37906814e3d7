"""The error of those who look twice, for those who catch it without looking themselves."""


class Contradiction(Exception):
    """Two ways to work out what is live do not agree, or something live has gone."""
