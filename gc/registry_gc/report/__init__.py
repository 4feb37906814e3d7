"""What a run came to, as a value, and the forms in which people and programs read it."""
