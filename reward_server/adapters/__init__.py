"""Adapters: rewards in the form in which other tools ask for them. Each needs the base install and its tool.

trl.py          a reward function for TRL's GRPOTrainer and its kin
verl.py         a compute_score for verl
http.py         `winnow gateway`: OpenRLHF's remote reward and a vLLM-style /score, over HTTP
openrlhf.py     pure: OpenRLHF's query and prompt texts -> a conversation and its completion
coalescing.py   request coalescing: samples of one prompt that come at once -> one group
"""
