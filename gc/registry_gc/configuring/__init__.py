"""What :mod:`registry_gc.config` reads a registry's config from."""
