"""Shared by the tests: fixtures, small studies, and ways to damage them."""
