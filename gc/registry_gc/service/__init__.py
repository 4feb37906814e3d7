"""The registry, out of use for a run and back again, by commands of the operator's."""
