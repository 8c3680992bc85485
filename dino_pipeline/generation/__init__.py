"""The generate stage: which texts there are to write, who writes them, and where they are kept."""
