import platform
import subprocess
import sys

import numpy
import pytest
import torch
import transformers
from pydantic import ValidationError

import recbole_prunerec
from recbole_prunerec.report.results import Results, Row, device_name, versions
from recbole_prunerec.storage import read_json, write_json

ROW = {
    "system": "PruneRec",
    "step": 2,
    "step_name": "width",
    "criterion": "wanda",
    "restored": True,
    "test_rows": 3000,
    "metrics": {"hit@10": 0.1, "hit@20": 0.2, "ndcg@10": 0.05, "ndcg@20": 0.07},
    "retention": 0.9,
    "step_seconds": 12.5,
    "training_memory_bytes": 2000,
    "parameters": {"non_embedding": 100, "total": 200, "share_non_embedding": 0.1, "share_total": None},
    "flops_per_user": 1e6,
    "seconds_per_user": 0.1,
    "peak_memory_bytes": 1000,
    "note": None,
}
FREE = {"dataset": {"users": 943}, "protocol": {"split": "global_time"}, "versions": {"torch": "2"}}
RUN = {"device": "cpu", "command": "x", "seed": 1, "preset": "tiny", "worthless": False}
COMPARISON = {
    "system": "A",
    "against": "B",
    "metric": "hit@10",
    "difference": 0.1,
    "low": 0.0,
    "high": 0.2,
    "confidence": 0.95,
    "users": 5,
    "rows": 9,
}
DOCUMENT = {"rows": [ROW], "comparisons": [COMPARISON], **FREE, **RUN}


def test_document_round_trips_through_json_unchanged(tmp_path):
    results = Results.model_validate(DOCUMENT)
    assert results.model_dump(mode="json") == DOCUMENT
    write_json(tmp_path / "results.json", results)
    assert read_json(tmp_path / "results.json", Results) == results


@pytest.mark.parametrize("change", [{"metric": {}}, {"metrics": {"hit@10": float("nan")}}, {"test_rows": None}, {"parameters": {"total": 1}}])
def test_wrong_rows_are_refused(change):
    with pytest.raises(ValidationError):
        Row.model_validate({**ROW, **change})


def test_rows_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Row.model_validate(ROW).system = "other"


def test_versions_are_those_of_the_imported_packages():
    found = versions()
    assert found["python"] == platform.python_version()
    assert [found["torch"].split("+")[0], found["transformers"], found["numpy"], found["recbole-prunerec"]] == [
        torch.__version__.split("+")[0],
        transformers.__version__,
        numpy.__version__,
        recbole_prunerec.__version__,
    ]


def test_versions_import_nothing_heavy():
    code = (
        "import sys; from recbole_prunerec.report import results; results.versions(); print({'torch', 'recbole', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_device_name_of_a_cpu_has_its_threads():
    assert device_name("cpu").endswith(f", {torch.get_num_threads()} threads")
    assert len(device_name("cpu").split(",")[0]) > 2
