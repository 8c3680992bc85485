"""The training objectives, one or a few related ones in each module."""
