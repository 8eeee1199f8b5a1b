"""The whole recipe on a CPU in minutes, on models and data made on the spot."""
