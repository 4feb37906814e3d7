"""What runs leave behind: the state directory, past runs, sealed plans, what was seen last."""
