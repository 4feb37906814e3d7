"""What the registry itself remembers of blobs, in Redis, and how it forgets it."""
