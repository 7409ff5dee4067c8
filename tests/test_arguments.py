"""The layers: what of YAML and command line becomes which setting."""

import logging

import pytest

from recbole_prunerec import shipped
from recbole_prunerec.arguments import USAGE, load_arguments, parse
from recbole_prunerec.errors import UserError
from recbole_prunerec.settings import Depth, Finetune, Mlp, RestoreOverride, Settings, Width

PROTOCOL = {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)", "valid_metric": "NDCG@10"}
TINY = {
    "softmax": "catalogue",
    "model": ("PruneRec",),
    "preset": "tiny",
    "compare": ("SASRec",),
    "baselines": {"epochs": 2},
    "recbole": PROTOCOL,
    "title_field": "movie_title",
    "epochs": 6,
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "train_batch_size": 64,
    "weight_decay": 0.05,
    "adam_betas": (0.9, 0.95),
    "valid_rows": 512,
    "steps": (
        Finetune(do="finetune"),
        Width(do="width", heads=2, hidden=64, kv_policy="group"),
        Mlp(do="mlp", intermediate=128),
        Depth(do="depth", layers=2),
    ),
    "restore": {"epochs": 2},
}
PAPER = {
    "backbone": "Qwen/Qwen2-0.5B",
    "preset": "paper",
    "compare": ("SASRec",),
    "baselines": {"epochs": 2},
    "recbole": PROTOCOL,
    "title_field": "movie_title",
    "template": "bigrec",
    "packing": False,
    "test_rows": None,
    "step_test_rows": None,
    "steps": (
        Finetune(do="finetune"),
        Width(do="width", heads=7, hidden=448, kv_policy="expand"),
        Mlp(do="mlp", intermediate=896),
        Depth(do="depth", layers=8),
    ),
}
BASELINE = {"preset": "tiny", "recbole": PROTOCOL, "title_field": "movie_title"}


def load(*argv: str) -> Settings:
    return load_arguments(argv).settings


def changed(base: dict, **changes) -> Settings:
    return Settings(**{**base, **changes})


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_arguments(argv)
    return str(caught.value).splitlines()


def test_without_arguments_prunerec_runs_with_the_tiny_preset():
    assert load() == Settings(**TINY)


def test_every_layer_lies_over_the_one_before(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 11\nlearning_rate: 1e-2\nrestore: {kd_weight: 0.1, temperature: 3.0}\nseed: 1\n")
    second.write_text("epochs: 12\nrestore: {kd_weight: 0.2}\nseed: 2\n")
    settings = load("--config_files", f"{first} {second}", "--seed=3", "--restore.kd_loss=js")
    assert settings.topk == (10, 20)  # protocol.yaml
    assert settings.compare == ("SASRec",)  # model/PruneRec.yaml
    assert settings.title_field == "movie_title"  # dataset/ml-100k.yaml, over protocol.yaml's title
    assert settings.schedule == "cosine"  # the preset
    assert settings.learning_rate == 0.01  # the first file, over the preset
    assert settings.epochs == 12  # the second file, over the first
    assert settings.seed == 3  # the command line
    assert settings.restore.model_dump() == {
        "kd_weight": 0.2,
        "kd_loss": "js",
        "temperature": 3.0,
        "teacher": "original",
        "tutor_weight": 0.0,
        "start": "cut",
        "epochs": 2,
        "cache": True,
        "chunkings": None,
        "learning_rate": None,
    }


def test_a_dataset_without_yaml_has_the_protocols_title_field(tmp_path):
    (tmp_path / "games").mkdir()
    (tmp_path / "games" / "games.inter").touch()
    expected = changed(TINY, title_field="title", dataset="games", data_path=str(tmp_path))
    assert load("--dataset=games", f"--data_path={tmp_path}") == expected


def test_a_preset_lies_over_what_it_extends():
    quick = {"epochs": 1, "training_rows": 640, "valid_rows": 64, "test_rows": 64, "step_test_rows": 32, "calibration_samples": 16, "worthless": True}
    assert load("--preset=quick") == changed(TINY, preset="quick", restore={"epochs": 1}, baselines={"epochs": 1}, **quick)


@pytest.mark.parametrize("argv", [["--backbone=Qwen/Qwen2-0.5B"], ["--preset=paper"]])
def test_another_backbone_than_tiny_takes_the_paper_preset(argv):
    assert load(*argv) == Settings(**PAPER)


def test_a_backbone_takes_the_preset_that_names_it_and_another_the_papers_with_a_word(caplog):
    assert load("--backbone=tiny").preset == "tiny" and load("--backbone=Qwen/Qwen2-0.5B").preset == "paper" and caplog.messages == []
    assert load("--backbone=Qwen/Qwen2-1.5B").preset == "paper"
    word = "backbone=Qwen/Qwen2-1.5B has no preset of its own: preset=paper is taken, which was made for Qwen/Qwen2-0.5B"
    assert caplog.messages == [word]
    theirs = shipped.properties("preset", "smollm2")["backbone"]
    assert load(f"--backbone={theirs}").preset == "smollm2" and caplog.messages == [word]


@pytest.mark.parametrize("commit", ["1234567", "12e4567", "v2", "refs/pr/1"])
def test_a_revision_is_text_even_where_it_looks_like_a_number(commit):
    assert load("--backbone=Qwen/Qwen2-0.5B", f"--revision={commit}").revision == commit


def test_a_named_preset_stays_whatever_the_backbone():
    assert load("--backbone=Qwen/Qwen2-0.5B", "--preset=tiny") == changed(TINY, backbone="Qwen/Qwen2-0.5B")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--topk=5", {"topk": (5,), "recbole": {**PROTOCOL, "valid_metric": "NDCG@5"}}),
        ("--topk=5,10", {"topk": (5, 10)}),
        ("--topk=[5,10]", {"topk": (5, 10)}),
        ("--topk=[5, 10]", {"topk": (5, 10)}),
        ("--metrics=Hit,NDCG,MRR", {"metrics": ("Hit", "NDCG", "MRR")}),
        ("--metrics=Hit", {"metrics": ("Hit",), "recbole": {**PROTOCOL, "valid_metric": "Hit@10"}}),
        ("--metrics=hit,ndcg", {"metrics": ("hit", "ndcg"), "recbole": {**PROTOCOL, "valid_metric": "ndcg@10"}}),
        ("--valid_metric=hit@20", {"recbole": {**PROTOCOL, "valid_metric": "hit@20"}}),
        ("--learning_rate=1e-3", {"learning_rate": 1e-3}),
        ("--learning_rate=1", {"learning_rate": 1.0}),
        ("--learning_rate=.5", {"learning_rate": 0.5}),
        ("--adam_betas=0.8,0.9", {"adam_betas": (0.8, 0.9)}),
        ("--packing=yes", {}),
        ("--packing=True", {}),
        ("--packing=no", {"packing": False}),
        ("--packing=False", {"packing": False}),
        ("--valid_rows=null", {"valid_rows": None}),
        ("--valid_rows=", {"valid_rows": None}),
        ("--checkpoint_dir=2018", {"checkpoint_dir": "2018"}),
        ("--checkpoint_dir=a=b, [c", {"checkpoint_dir": "a=b, [c"}),
        ("--title_field=on", {"title_field": "on"}),
        ("--user_inter_num_interval=[10,inf)", {"recbole": {**PROTOCOL, "user_inter_num_interval": "[10,inf)"}}),
        ("--user_inter_num_interval=null", {"recbole": {**PROTOCOL, "user_inter_num_interval": None}}),
        ("--benchmark_filename=train,valid,test", {"recbole": {**PROTOCOL, "benchmark_filename": ["train", "valid", "test"]}}),
        ("--seed=1_000", {"seed": 1000}),
        ("--learning_rate=0.001", {"learning_rate": 1e-3}),
        ("--gpu_id=0", {"device": "cuda:0"}),
        ("--compare=", {"compare": ()}),
        ("--compare=Pop,GRU4Rec", {"compare": ("Popularity", "GRU4Rec")}),
        ("--baselines.epochs=5", {"baselines": {"epochs": 5}}),
        ("--baselines.hidden_size=32", {"baselines": {"epochs": 2, "hidden_size": 32}}),
        ("--baselines={hidden_size: 32}", {"baselines": {"epochs": 2, "hidden_size": 32}}),
        ("--restore.kd_weight=0.5", {"restore": {"epochs": 2, "kd_weight": 0.5}}),
        ("--ranking.beams=30", {"ranking": {"beams": 30}}),
        ("--test_rows=100", {"test_rows": 100, "step_test_rows": 100}),
        ("--test_rows=400", {"test_rows": 400, "step_test_rows": 400}),
        ("--test_rows=null", {"test_rows": None, "step_test_rows": 500}),
        ("--step_test_rows=null", {"step_test_rows": 3000}),
        ("--step_test_rows=20", {"step_test_rows": 20}),
        ("--MAX_ITEM_LIST_LENGTH=5", {"MAX_ITEM_LIST_LENGTH": 5, "packing_stride": 6}),
        ("--MAX_ITEM_LIST_LENGTH=20", {"MAX_ITEM_LIST_LENGTH": 20, "packing_stride": 11}),
    ],
)
def test_an_argument_becomes_its_setting(argument, expected):
    assert load(argument).model_dump() == changed(TINY, **expected).model_dump()
    key, _, value = argument.partition("=")
    assert load(key, value) == load(argument)


def test_rows_of_the_steps_follow_the_test_rows():
    assert Settings(test_rows=100).step_test_rows == 100
    assert Settings(test_rows=100, step_test_rows=200).step_test_rows == 100
    assert Settings(test_rows=None, step_test_rows=None).step_test_rows is None


def test_the_packing_stride_follows_the_chunk():
    assert Settings().packing_stride == 11
    assert Settings(MAX_ITEM_LIST_LENGTH=5).packing_stride == 6
    assert Settings(MAX_ITEM_LIST_LENGTH=5, packing_stride=2).packing_stride == 2
    assert Settings(MAX_ITEM_LIST_LENGTH=5, packing_titles=20, packing_stride=20).packing_stride == 20
    assert Settings(packing_titles=4).packing_stride == 4


def test_a_chunk_has_a_history_and_its_target_unless_it_is_told():
    default = Settings().identity()
    assert "packing_titles" not in default and Settings(packing_titles=31).identity() == {**default, "packing_titles": 31}
    assert Settings().titles_in_chunk == 11 and Settings(packing_titles=31).titles_in_chunk == 31
    with pytest.raises(ValueError, match="packing_titles"):
        Settings(packing_titles=1)  # nothing would be a target


def test_a_path_reaches_into_a_step_counted_from_one():
    width = Width(do="width", heads=4, hidden=64, kv_policy="group", restore=RestoreOverride(epochs=1))
    settings = load("--steps.2.restore.epochs=1", "--steps.2.heads=4")
    assert settings.steps == (TINY["steps"][0], width, *TINY["steps"][2:])
    assert [settings.restore_of(step).epochs for step in settings.steps[1:]] == [1, 2, 2]


def test_a_list_of_steps_replaces_the_presets():
    assert load("--steps=[{do: finetune}, {do: depth, layers: 3}]").steps == (Finetune(do="finetune"), Depth(do="depth", layers=3))


def test_config_files_hold_lists_as_the_command_line_does(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: SASRec,PruneRec\ntopk: 10\nmetrics: [NDCG]\n")
    assert load(f"--config_files={file}") == changed(TINY, model=("SASRec", "PruneRec"), topk=(10,), metrics=("NDCG",))


def test_an_empty_config_file_changes_nothing(tmp_path):
    (tmp_path / "empty.yaml").touch()
    assert load(f"--config_files={tmp_path / 'empty.yaml'}") == Settings(**TINY)


def test_without_prunerec_the_top_level_is_recboles():
    argv = ["--model=SASRec,GRU4Rec", "--epochs=7", "--learning_rate=1e-3", "--stopping_step=3", "--hidden_size=64", "--learner=sgd"]
    training = {"epochs": 7, "learning_rate": 1e-3, "stopping_step": 3}
    expected = changed(BASELINE, model=("SASRec", "GRU4Rec"), recbole={**PROTOCOL, **training, "hidden_size": 64, "learner": "sgd"}, **training)
    assert load(*argv) == expected


def test_without_prunerec_recboles_defaults_stay_where_nothing_is_asked():
    assert load("--model=SASRec") == changed(BASELINE, model=("SASRec",))


def test_where_the_checkpoints_lie_is_no_key_of_recboles():
    assert load("--model=SASRec", "--checkpoint_dir=elsewhere", "--seed=1").recbole == PROTOCOL


def test_with_prunerec_the_top_level_is_its_own():
    settings = load("--model=SASRec,PruneRec", "--epochs=7", "--hidden_size=64", "--baselines.epochs=9")
    assert settings == changed(TINY, model=("SASRec", "PruneRec"), epochs=7, recbole={**PROTOCOL, "hidden_size": 64}, baselines={"epochs": 9})


def test_without_prunerec_a_smoke_run_is_small_too_and_the_command_line_has_the_last_word():
    rows = {"training_rows": 640, "test_rows": 64, "worthless": True}
    assert load("--model=SASRec", "--preset=quick") == changed(BASELINE, model=("SASRec",), preset="quick", recbole={"epochs": 1, **PROTOCOL}, **rows)
    assert load("--model=SASRec", "--preset=quick", "--epochs=3").recbole["epochs"] == 3


def test_without_prunerec_baselines_count_too_below_the_top_level():
    settings = load("--model=SASRec", "--baselines.learner=sgd", "--baselines.epochs=2", "--learner=adagrad")
    assert (settings.recbole, settings.baselines) == ({**PROTOCOL, "learner": "adagrad", "epochs": 2}, {})


def test_a_dictionary_of_recboles_given_in_part_keeps_its_other_defaults():
    full = {"distribution": "uniform", "sample_num": 3, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    assert load("--model=SASRec", "--train_neg_sample_args.sample_num=3").recbole["train_neg_sample_args"] == full
    assert load("--baselines.train_neg_sample_args.sample_num=3").baselines["train_neg_sample_args"] == full


def test_recboles_pop_becomes_popularity_with_a_word(caplog):
    with caplog.at_level(logging.WARNING):
        assert load("--model=Pop").model == ("Popularity",)
    assert "Popularity takes its place" in caplog.text


@pytest.mark.parametrize(("argv", "fresh"), [([], False), (["--fresh"], True), (["--fresh=true"], True), (["--fresh=no"], False)])
def test_fresh(argv, fresh):
    assert load_arguments(argv).fresh is fresh
    assert mistakes("--fresh=perhaps") == ["fresh='perhaps': expected true, false, or the bare --fresh"]


@pytest.mark.parametrize(("argv", "yes"), [([], False), (["--yes"], True), (["--yes=true", "--fresh"], True), (["--yes=no"], False)])
def test_yes(argv, yes):
    assert load_arguments(argv).yes is yes and "\n  --yes " in USAGE
    assert mistakes("--yes=perhaps") == ["yes='perhaps': expected true, false, or the bare --yes"]


def test_parse_reads_all_forms():
    problems: list[str] = []
    given = parse(["--a=1", "--b", "2", "--c.1.d=x=y", "--fresh", "--e=", "--a=1"], problems)
    assert (given, problems) == ({"a": "1", "b": "2", "c.1.d": "x=y", "fresh": "true", "e": ""}, [])


def test_a_preset_is_merged_into_the_one_it_extends(monkeypatch):
    presets = {
        "a": {"extends": "b", "x": {"one": 1}},
        "b": {"extends": "c", "x": {"two": 2}, "y": 2},
        "c": {"x": {"one": 3, "two": 3}, "y": 3, "z": 3},
    }
    monkeypatch.setattr(shipped, "properties", lambda kind, name: dict(presets[name]))
    assert shipped.recipe("a") == {"x": {"one": 1, "two": 2}, "y": 2, "z": 3}


def test_merge_goes_into_dictionaries_only():
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}}
    assert shipped.merge(below, {"a": {"c": [3]}, "d": {"x": 1}, "e": None}) == {"a": {"b": 1, "c": [3]}, "d": {"x": 1}, "e": None}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["foo"], "unexpected argument 'foo'; arguments look like --key=value"),
        (["model=SASRec"], "unexpected argument 'model=SASRec'; arguments look like --model=SASRec"),
        (["-model=SASRec"], "unexpected argument '-model=SASRec'; arguments look like --model=SASRec"),
        (["--"], "unexpected argument '--'; arguments look like --key=value"),
        (["--=3"], "unexpected argument '--=3'; arguments look like --key=value"),
        (["--steps.=3"], "unexpected argument '--steps.=3'; arguments look like --key=value"),
        (["--epochs"], "--epochs has no value; write --epochs=<value>"),
        (["--epochs", "--fresh"], "--epochs has no value; write --epochs=<value>"),
        (["--epochs=3", "--epochs=4"], "--epochs is given twice, as 3 and as 4; leave one out"),
        (["--epochs", "3", "4"], "unexpected argument '4'; arguments look like --key=value"),
        (["--baselines={a: b: c}"], "--baselines={a: b: c} is not valid YAML at line 1, column 6: "),
        (["--topk=1,]"], "--topk=] is not valid YAML at line 1, column 1: "),
        (["--config_files="], "--config_files is empty; name YAML files, or leave it out"),
        (["--preset=quik"], "preset=quik is unknown; did you mean 'quick'?"),
        (["--preset="], "preset=null is unknown; there are paper, paper-16, quick, smollm2, tiny"),
        (["--preset=large"], "preset=large is unknown; there are paper, paper-16, quick, smollm2, tiny"),
        (["--steps.9.heads=1"], "steps.9.heads=1: steps has places 1 to 4, got 9"),
        (["--steps.0.heads=1"], "steps.0.heads=1: steps has places 1 to 4, got 0"),
        (["--steps.width.heads=1"], "steps.width.heads=1: steps has places 1 to 4, got width"),
        (["--epochs.2=1"], "epochs.2=1: epochs is 6, which has no parts; set epochs itself"),
        (["--model=SASRec", "--steps.2.heads=1"], "steps.2.heads=1 is for PruneRec, which is not in model=SASRec; leave it out"),
    ],
)
def test_what_cannot_be_read_is_said(argv, expected):
    found = mistakes(*argv)
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is not a file"),
        (b"epochs: 3\nsteps: [", "is not valid YAML at line 2, column 9: "),
        (b"a: \x07", "is not valid YAML: unacceptable character #x0007"),
        (b"epochs: \xff", "is not text in UTF-8"),
        (b"- epochs", "must hold keys and values, got a list"),
        (b"epochs", "must hold keys and values, got a str"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path, content, expected):
    path, good = tmp_path / "mine.yaml", tmp_path / "good.yaml"
    good.write_text("epohcs: 3")
    if content is not None:
        path.write_bytes(content)
    first, second = mistakes(f"--config_files={path} {good}")
    assert first.startswith(f"--config_files: {path} {expected}")
    assert second == "epohcs is not a known key; did you mean 'epochs'?"


def test_a_path_in_a_config_file_is_told_where_it_belongs(tmp_path):
    (tmp_path / "mine.yaml").write_text("steps.2.heads: 4\n1: 2\n")
    assert mistakes(f"--config_files={tmp_path / 'mine.yaml'}") == [
        "steps.2.heads is a path, which the command line takes; in a file write one key inside the other, or --steps.2.heads=4 outside",
        "1 is not a known key",
    ]


def test_all_that_is_wrong_comes_at_once():
    argv = [
        "word",
        "--epochs=x",
        "--preset=quik",
        "--modle=SASRec",
        "--topk=[5",
        "--split=random",
        "--teacher=/nowhere",
        "--metrics=Hitt",
        "--fresh=3",
    ]
    starts = ["unexpected", "--topk=[5", "fresh=3", "preset=quik", "metrics=Hitt", "modle is", "teacher=/nowhere", "split=random", "epochs='x'"]
    starts += ["steps.1 is finetune, but teacher=/nowhere"]
    found = mistakes(*argv)
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=True)), found


def test_dashes_stand_for_underscores():
    settings = load_arguments(["--train-batch-size=3", "--restore.kd-weight", "0.5"]).settings
    assert (settings.train_batch_size, settings.restore.kd_weight) == (3, 0.5)
    assert load_arguments(["--dry-run"]).dry_run
