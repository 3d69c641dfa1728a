"""Recipes and suites that ship with the software, by name."""
