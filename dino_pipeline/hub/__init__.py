"""Publishing: a run as a dataset and a model repository, first as folders, then on the Hugging Face Hub."""
