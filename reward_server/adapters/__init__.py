"""Adapters: the reward as other tools ask for it. Each needs the base install, and the tool that calls it.

trl.py          a reward function for TRL's GRPOTrainer and its kin
verl.py         a compute_score for verl
http.py         `winnow gateway`: OpenRLHF's remote reward and a vLLM-style /score, over HTTP
openrlhf.py     pure: OpenRLHF's query and prompt texts -> a conversation and its completion
coalescing.py   one-sample requests of one prompt that come at once -> one group
"""
