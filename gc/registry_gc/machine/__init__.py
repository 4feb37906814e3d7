"""What the machine has, and runs out of: memory, threads, processes."""
