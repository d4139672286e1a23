"""The score of a campaign: only the right class with the right culprit counts, in time, and nobody else may be blamed."""

from __future__ import annotations

import pytest
from benchmarks.verdicts import NONE, STEPS_MAX, Trial, score, table, totals

RIGHT = Trial("hang", 6.0, 0, "said", found=True, right=True)


def test_a_campaign_in_which_all_is_right_is_kept() -> None:
    row = score("hang", [RIGHT, Trial("hang", 8.0, 2, "said", found=True, right=True)])
    assert (row["found"], row["right"], row["seconds"], row["seconds_spread"]) == (2, 2, 7.0, [6.0, 8.0])
    assert row["kept"]
    assert score(NONE, [Trial(NONE)])["kept"]
    assert "| hang | non-communication hang | 2 | 2 | 2 | 0 | 7.0 (6.0 to 8.0) | 1 |" in table([row])


@pytest.mark.parametrize(
    "wrong",
    [
        Trial("hang"),
        Trial("hang", 6.0, found=True),
        Trial("hang", 16.0, found=True, right=True),
        Trial("hang", 6.0, found=True, right=True, made_up=("crash",)),
        Trial("slow-rank", 9.0, STEPS_MAX["slow-rank"] + 1, found=True, right=True),
        Trial(NONE, made_up=("crash",)),
    ],
    ids=["missed", "wrong culprit", "late", "made up", "too many steps", "false alarm"],
)
def test_what_is_wrong_is_not_kept(wrong: Trial) -> None:
    assert not score(wrong.fault, [wrong])["kept"]


def test_precision_recall_and_accuracy_are_of_all_trials() -> None:
    rows = [
        score("hang", [RIGHT, Trial("hang"), Trial("hang", 6.0, found=True)]),
        score(NONE, [Trial(NONE, made_up=("crash",))]),
    ]
    assert totals(rows) == {"precision": 0.5, "recall": 2 / 3, "accuracy": 0.5}
