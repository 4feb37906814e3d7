"""Other places than this machine where work units run, see :mod:`registry_gc.engine`."""
