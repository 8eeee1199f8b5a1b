"""Publishing of a checkpoint and its results.

template.py    a policy's chat settings -> one chat template that needs no settings
export.py      the peak of a run -> a folder that transformers and vLLM load
"""
