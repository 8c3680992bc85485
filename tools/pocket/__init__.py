"""The grammar of the pocket models: their text and gold set, their training, and a measure of what a generator writes.

python -m tools.pocket.train generator|encoder|gold
python -m tools.pocket.fidelity [MODEL...]
"""
