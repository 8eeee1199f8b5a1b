"""Publishing of a checkpoint and its results.

content.py            a run, or results that exist -> the content of a card
card.py               the content -> Markdown
metadata.py           results -> model-index and .eval_results of the hub
every_eval_ever.py    results -> Every Eval Ever's JSON, which holds intervals
card_tasks.py         the tasks of the recipe's cards
intervals.py          pure: the interval of a published value
writing.py            the files of `winnow card`
template.py           a policy's chat settings -> one chat template that needs no settings
export.py             the peak of a run -> a folder that transformers and vLLM load
"""
