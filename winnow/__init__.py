"""The base layer of winnow: records, chat rendering, configs, run folders. Importing it imports no torch."""

__version__ = "0.2.0"
