"""An offline mark-and-sweep garbage collector for container-registry storage."""

__version__ = "0.1.0"
