"""Scheduling: the queue of groups, which group is computed next, and which group is refused."""
