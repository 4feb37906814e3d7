"""Is all there that should be? Worked out a second time, sharing no decision with marking."""
