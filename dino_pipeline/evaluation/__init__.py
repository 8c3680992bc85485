"""The evaluate stage: what encoders, and generators, are worth."""
