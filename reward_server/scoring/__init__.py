"""From a prompt and its completions to rewards: rendering, the two models, the formula."""
