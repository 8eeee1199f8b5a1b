"""Comparison of results that exist: of winnow's rounds, of lm-eval and of FastChat; nothing is computed by a model.

reading.py         a path -> a result: its tasks and its judged score
lm_eval_files.py   results_*.json and samples_*.jsonl of lm-eval
round_files.py     the eval folder of a round
judged_files.py    judgment files, with the lengths of the answers
refusals.py        pure: why two results do not compare
differences.py     pure: two results -> differences with intervals and p-values
comparison.py      several results -> one family of tests, as a table or JSON
"""
