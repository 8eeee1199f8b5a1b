"""The recipe on a small open model, SmolLM2-135M-Instruct, in well under an hour on a CPU."""
