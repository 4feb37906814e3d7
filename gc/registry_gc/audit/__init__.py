"""The audit log: which lines, and where they go."""
