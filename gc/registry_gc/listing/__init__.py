"""What a storage holds: how a listing is cut into units, and the columns they make of it."""
