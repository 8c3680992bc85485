"""The filter stage: what is trained on, and why the rest is not."""
