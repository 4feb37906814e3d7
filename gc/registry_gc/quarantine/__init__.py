"""What is set aside instead of deleted: how it gets there, comes back, and goes at last."""
