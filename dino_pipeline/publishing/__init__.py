"""Publishing: a run as a report, as a dataset repository and as a model repository, in folders and on the Hub."""
