"""Which group is computed next, and which group is refused."""
