"""Texts out of language models: many prompts in lock-step, each text less likely under its counter-instructions."""
