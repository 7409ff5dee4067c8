"""What is wrong with the settings of the compared systems that are ours."""

from pathlib import Path

import pytest
from hf_folder import write_folder

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.config import recbole_values
from recbole_prunerec.errors import UserError


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load_arguments(argv)
    return str(error.value).splitlines()


def step_folder(path: Path) -> str:
    """--teacher=... of a folder that is a step's, as far as files tell."""
    folder = write_folder(path / "1-finetune")
    for name in ("catalogue.json", "prompts.json"):
        (folder / name).touch()
    return f"--teacher={folder}"


NO_TEACHER = (
    "model=DLLM2Rec learns from a fine-tuned model, and there is none; name one, such as --teacher=saved/latest/1-finetune, or add PruneRec to model"
    ", whose fine-tuned model then teaches"
)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model=DLLM2Rec"], [NO_TEACHER]),
        (["--model=SASRec,DLLM2Rec"], [NO_TEACHER]),
        (["--model=DLLM2Rec", "--teacher=nowhere"], ["teacher=nowhere is not a folder; give the path of one with a Hugging Face model"]),
        (["--model=SLMRec", "--backbone=./nowhere"], ["backbone=./nowhere is not a folder; give the path of one with a Hugging Face model"]),
        (["--model=SLMRec", "--loss=kl"], ["loss='kl': expected one of slmrec, prunerec"]),
        (["--model=SLMRec", "--budget=1.5", "--norm_weight=-1"], ["budget=1.5: expected at most 1", "norm_weight=-1: expected at least 0"]),
        (["--model=SLMRec", "--student_layers=0"], ["student_layers=0: expected at least 1"]),
        (["--model=SLMRec", "--student_layers=two"], ["student_layers='two': expected a whole number"]),
        (["--model=SLMRec", "--student_layers=5"], ["student_layers=5 is more than the 4 layers of its teacher E4SRec; choose at most 4"]),
        (
            ["--model=SLMRec", "--student_layers=3", "--baselines.E4SRec.llm_layers=2"],
            ["student_layers=3 is more than the 2 layers of its teacher E4SRec; choose at most 2"],
        ),
        (
            ["--model=PruneRec", "--compare=SLMRec", "--baselines.SLMRec.student_layers=5"],
            ["student_layers=5 is more than the 4 layers of its teacher E4SRec; choose at most 4"],
        ),
        (["--model=SASRec", "--student=GRU4Rec"], ["student is not a known key"]),
        (["--model=SASRec", "--baselines.GRU4Rec.epochs=2"], ["baselines.GRU4Rec is not a key of RecBole's"]),
        (["--model=SASRec", "--baselines.SASRec=2"], ["baselines.SASRec is not a key of RecBole's"]),
        (
            ["--model=SASRec", "--baselines.SASRec.epoch=2", "--baselines.SASRec.topk=3", "--baselines.SASRec.n_layers=0"],
            [
                "baselines.SASRec.epoch is not a key of RecBole's; did you mean 'epochs'?",
                "baselines.SASRec.topk cannot be set: it is the same for all models of a table; write --topk=3",
                "baselines.SASRec.n_layers=0: expected at least 1",
            ],
        ),
        (["--ranking.assistant=SLMRec"], None),
    ],
)  # fmt: skip
def test_a_mistake_is_told(argv, expected):
    found = mistakes(*argv)
    if expected is None:
        assert found[0].startswith("ranking.assistant=SLMRec is unknown")
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("--student=BERT4Rec", "student='BERT4Rec': expected one of SASRec, GRU4Rec, Caser"),
        ("--student=sasrec", "student='sasrec': expected one of SASRec, GRU4Rec, Caser; did you mean 'SASRec'?"),
        ("--list_length=9", "list_length=9: expected at least 10"),
        ("--teacher_samples=0", "teacher_samples=0: expected at least 1"),
        ("--distill_weight=much", "distill_weight='much': expected a number, such as 0.8"),
        ("--loss_type=CE", "loss_type is not a known key"),
    ],
)
def test_a_mistake_in_teaching_is_told(tmp_path, key, expected):
    (found,) = mistakes("--model=DLLM2Rec", step_folder(tmp_path), key)
    assert found.startswith(expected)


def test_a_list_without_weights_is_refused_where_it_would_count(tmp_path):
    nothing = [f"--{key}_weight=0" for key in ("position", "confidence", "consistency")]
    argv = ["--model=DLLM2Rec", step_folder(tmp_path), *nothing]
    expected = "position_weight, confidence_weight, consistency_weight are all 0, so that no item of a teacher's list counts; give one"
    assert mistakes(*argv) == [f"{expected}, or distill_weight=0"]
    load_arguments([*argv, "--distill_weight=0"])


def test_a_teacher_that_is_no_step_is_refused(tmp_path):
    folder = write_folder(tmp_path / "model")
    expected = f"teacher={folder} has no catalogue.json and no prompts.json, which say what it recommends and how it is asked"
    hint = "; give the folder of a step, such as saved/latest/1-finetune"
    assert mistakes("--model=DLLM2Rec", f"--teacher={folder}") == [expected + hint]


def test_a_run_with_prunerec_has_a_teacher():
    for argv in (["--model=PruneRec,DLLM2Rec"], ["--model=PruneRec", "--compare=DLLM2Rec"]):
        assert load_arguments(argv).settings.teacher is None


def test_what_is_said_of_one_model_wins_and_is_this_models_alone(tmp_path):
    argv = [
        "--model=SASRec,SLMRec",
        "--epochs=7",
        "--baselines.learning_rate=0.1",
        "--baselines.SLMRec.epochs=2",
        "--baselines.E4SRec.learning_rate=0.3",
    ]
    settings = load_arguments(argv).settings
    found = {name: recbole_values(settings, name, tmp_path) for name in ("SASRec", "E4SRec", "SLMRec")}
    assert {name: (values["epochs"], values["learning_rate"]) for name, values in found.items()} == {
        "SASRec": (7, 0.1),
        "E4SRec": (7, 0.3),
        "SLMRec": (2, 0.1),
    }
    assert all(values["loss_type"] == "CE" and values["train_neg_sample_args"] is None for values in (found["E4SRec"], found["SLMRec"]))
