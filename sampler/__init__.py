"""Prompts -> completions -> rewards -> selected rows, and the loop over rounds."""
