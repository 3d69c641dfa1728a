"""The commands of ``trainer``, one file for those that belong together: options, and what is said of the outcome.

What works is imported inside a command: whoever asks for help, or for the version, does not wait for torch.
"""
