"""The command line: parse, wire, print, exit. Nothing else in the collector does any of these."""
