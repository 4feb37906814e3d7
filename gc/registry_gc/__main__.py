"""``python -m registry_gc`` is ``registry-gc``, for where the command is not on the path."""

from registry_gc.cli.entry import registry_gc

if __name__ == "__main__":
    registry_gc()
