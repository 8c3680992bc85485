"""The finetune stage: an encoder learns from texts, in the way that an objective says."""
