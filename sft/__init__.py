"""Training: rows and phases -> token rows -> one SFT job (TRL) -> a checkpoint."""
