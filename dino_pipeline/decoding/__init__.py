"""Decoding: sampling texts from language models, each debiased by counter-prompts."""
