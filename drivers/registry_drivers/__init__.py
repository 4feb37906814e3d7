"""Storage drivers for registry-garbage-collect: a filesystem, S3, Google Cloud Storage, Azure.

Knows nothing about registries; imports nothing from ``registry_gc``.
"""
