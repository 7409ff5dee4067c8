"""The columns that RecBole's keys name are among those that are loaded, by the names that they have in the run."""

import pytest

from recbole_prunerec.shipped import recbole_defaults
from recbole_prunerec.validation.recbole_keys import column_problems

OWN = recbole_defaults(["SASRec"])
LOADED = "which is not loaded; there are user_id, item_id, timestamp"


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"val_interval": {"rating": "[3,inf)"}}, [f"val_interval names the column 'rating', {LOADED}"]),
        ({"threshold": {"rating": 3}}, [f"threshold names the column 'rating', {LOADED}"]),
        ({"discretization": {"age": {"method": "LD"}}}, [f"discretization names the column 'age', {LOADED}"]),
        ({"normalize_field": ["timestamp", "timestmp"]}, [f"normalize_field names the column 'timestmp', {LOADED}; did you mean 'timestamp'?"]),
        (
            {"val_interval": {"user_id": ["u"], "when": "[1,2]", "timestamp": "[1,2]"}, "USER_ID_FIELD": "who", "TIME_FIELD": "when"},
            [f"val_interval names the column '{name}', which is not loaded; there are who, item_id, when" for name in ("user_id", "timestamp")],
        ),
        (
            {"normalize_field": ["timestamp"], "benchmark_filename": ["a", "b", "c"]},
            ["normalize_field names the column 'timestamp', which is not loaded; there are user_id, item_id"],
        ),
        ({"threshold": {"timestamp": 3}}, ["threshold replaces the column 'timestamp', of which samples are made; leave it out"]),
        (
            {"discretization": {"timestamp": {"method": "LD"}}, "numerical_features": ["timestamp"]},
            ["discretization replaces the column 'timestamp', of which samples are made; leave it out"],
        ),
    ],
)
def test_a_column_that_is_not_loaded_or_would_be_lost_is_refused(theirs, expected):
    assert column_problems(theirs, OWN) == expected


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"val_interval": None, "normalize_field": None},
        {"val_interval": {"timestamp": "[3,inf)", "user_id": ["u1"], "item_id": ["i1"]}},
        {"normalize_field": ["timestamp"]},
        {"val_interval": {"when": "[3,inf)"}, "TIME_FIELD": "when"},
        {"normalize_field": {"rating": 1}, "val_interval": ["rating"], "threshold": 3},  # of another type, which is reported with the rest
        {"normalize_field": [["rating"]]},
    ],
)
def test_columns_that_are_loaded_are_taken(theirs):
    assert column_problems(theirs, OWN) == []
