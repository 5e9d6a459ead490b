"""The command line: parse, one call into the library, print. Heavy imports stay inside the commands."""
