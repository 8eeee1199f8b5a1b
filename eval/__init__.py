"""Evaluation: benchmarks, a judged question set, and the rule that picks the peak checkpoint."""
