"""Why something is live or dead, and how it is reached."""
