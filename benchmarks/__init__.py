"""Side-by-side measurements against peers. Never timed tests: they print what they see."""
