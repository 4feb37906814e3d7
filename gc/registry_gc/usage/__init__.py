"""Who uses the storage, how it grows, and what deleting something would free."""
