"""Examples; `python -m examples.miniature` runs the whole recipe on a CPU."""
