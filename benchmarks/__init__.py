"""Measurements of speed and memory next to peers. They print figures; no test depends on their times."""
