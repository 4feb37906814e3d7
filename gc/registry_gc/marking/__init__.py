"""What marking and planning rest on: links, layers, referrers, and how old each is."""
