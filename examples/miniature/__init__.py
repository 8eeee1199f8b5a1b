"""The whole recipe on a CPU in minutes, with generated models and data."""
