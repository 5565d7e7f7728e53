"""How the benchmark of the doctor counts, and that its mistakes are ones."""

from doctor import found_at
from doctor_errors import with_wrong_labels


def test_recall_counts_the_longest_beginning_with_half_of_it_wrong() -> None:
    wrong = dict.fromkeys("abcd", "kind")
    assert found_at(["a", "x", "b", "y", "z", "w", "c"], wrong) == {"a", "b"}  # 3 of 7 would be under a half
    assert found_at(["a", "x", "b", "y", "z", "c", "d"], wrong) == set("abcd")
    assert found_at(["x", "y", "a"], wrong) == set()


def test_a_share_of_labels_becomes_another_one() -> None:
    rows = [{"id": str(at), "text": "abc"[at % 3]} for at in range(50)]
    changed, wrong = with_wrong_labels(rows, 0.1, seed=3)
    different = {one["id"] for one, other in zip(rows, changed, strict=True) if one["text"] != other["text"]}
    assert different == set(wrong)
    assert len(wrong) == 5
    assert {row["text"] for row in changed} == set("abc")
