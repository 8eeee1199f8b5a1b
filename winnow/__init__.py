"""The ground floor of winnow: records, chat rendering, configs, run folders. Importing it pulls in no torch."""

__version__ = "0.1.0"
