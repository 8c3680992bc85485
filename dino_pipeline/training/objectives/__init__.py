"""The training objectives: which module defines each of them."""

from __future__ import annotations

REGISTRY = {
    "dino": "pair_objectives:DINO",
    "sbert": "pair_objectives:SBERT",
    "simcse": "simcse:SIMCSE",
    "simcse-sup": "simcse:SUPERVISED_SIMCSE",
    "mirror-bert": "mirror_bert:MIRROR_BERT",
    "is-cse": "simcse:IS_CSE",
    "declutr": "declutr:DECLUTR",
    "cpt": "pair_objectives:CPT",
    "cmlm": "masked_words:CMLM",
}
"""Objectives by name, in the order in which they are listed: ``module:variable``, imported when needed."""
NAMES = tuple(REGISTRY)
