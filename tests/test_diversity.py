from __future__ import annotations

from dino_pipeline.generation.generate_stage import WINDOW, DiversityMonitor, variety, variety_remedy
from tests.toys import Listener


def test_texts_that_become_alike_are_told_of_once_with_the_advice_that_fits() -> None:
    notes = Listener()
    found = DiversityMonitor(notes.note, variety_remedy(needs_inputs=True, top_k=5, top_p=0.9))
    found.add("1", [" ".join(f"{at}{letter}" for letter in "abcdefg") for at in range(WINDOW - 1)])
    assert found.summary == "" and not notes.notes
    found.add("1", ["One more of them is here."])
    assert found.summary.startswith("distinct-2 1.00") and found.summary.endswith("near-duplicates 0%")
    for _ in range(3):
        found.add("1", ["A man is playing a guitar in the garden."] * 200)
    assert len(notes.notes) == 1
    assert notes.notes[0].startswith('label "1": texts become alike: distinct-2')
    assert notes.notes[0].endswith(
        "(num_inputs) bring more than more samples, and so does wider sampling (top_k=0 top_p=0.95)"
    )
    assert "variables or examples in the spec" in variety_remedy(needs_inputs=False, top_k=0, top_p=0.95)
    assert "wider sampling" not in variety_remedy(needs_inputs=False, top_k=0, top_p=0.95)


def test_variety_of_texts() -> None:
    assert variety(["a b c", "a b c"]) == (0.5, 0.5)
    assert variety(["a b c", "d e f"]).distinct_2 == 1.0
    assert variety(["我们今天去学校", "我们今天去学校"]).distinct_2 == 0.5, "characters, where words are not parted"
