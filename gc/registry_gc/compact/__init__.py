"""Data of very many digests, kept small: arrays, keys, and rows on disk."""
