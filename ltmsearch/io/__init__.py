"""Reading and writing files: atomic, size-limited, and refused in one line when damaged."""
