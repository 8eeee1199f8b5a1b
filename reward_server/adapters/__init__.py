"""Adapters: rewards in the form that other tools expect. Each needs the base install and its tool.

trl.py          a reward function for TRL's GRPOTrainer and its other online trainers
verl.py         a compute_score for verl
http.py         `winnow gateway`: OpenRLHF's remote reward and a vLLM-style /score, over HTTP
openrlhf.py     pure: OpenRLHF's query and prompt texts -> a conversation and its completion
coalescing.py   request coalescing: completions of one prompt that come at the same time -> one group
"""
