"""Audits of a reward: `winnow eval-reward`.

pair_files.py             files of preference pairs -> pairs, checked before any is scored
pair_rows.py              pure: one row, in any of the known forms -> a pair
accuracy.py               pure: scored pairs -> accuracy by subset and by length, ties and failures apart
rewardbench_sections.py   pure: accuracy by subset -> RewardBench's sections and total
gold_rows.py              files of completions with gold scores -> rewards and gold scores by prompt
best_of_n.py              pure: those -> the curve of gold against n, and gold against reward
audit.py                  reads, scores, reports
report.py                 the content of audit.json, and of the files that RewardBench's leaderboard reads
tables.py                 the report on the terminal
"""
