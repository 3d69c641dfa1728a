"""The formats that masks are exported to: a module each, with a ``FORMAT`` that ``format.py`` describes."""
