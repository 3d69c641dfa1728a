"""The commands of ``trainer``: their options, and what they print. Commands that belong together share a file.

Modules that need torch are imported inside the commands, so that ``--help`` and ``--version`` do not wait for it.
"""
