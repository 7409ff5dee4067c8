"""Every mistake is one sentence that names the key, what was got, and the way out; and none brings another with it."""

import pytest
from hf_folder import write_folder

from recbole_prunerec.arguments import load_arguments
from recbole_prunerec.backbone.family import FAMILIES
from recbole_prunerec.compared.systems import OURS
from recbole_prunerec.errors import UserError
from recbole_prunerec.prune.budget import FAMILY_NAMES
from recbole_prunerec.shipped import recbole_defaults, recbole_models
from recbole_prunerec.validation.recbole_keys import CHOICES, DEFAULT_IS_NULL, LEAST, NULL_TOO, REFUSED, SHARED
from recbole_prunerec.validation.validate import NEED_FEATURES, TRAINING

SEQUENTIAL = "BERT4Rec, CORE, Caser, DIN, FEARec, FOSSIL, FPMC, GCSAN, GRU4Rec, GRU4RecCPR"
STEPS = "--steps=[{do: finetune}, {do: width, heads: %s, hidden: %s}]"


def mistakes(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_arguments(argv)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        # models
        (["--model=PruneRc"], "model=PruneRc is unknown; did you mean 'PruneRec'?"),
        (["--model=sasrec"], "model=sasrec is unknown; did you mean 'SASRec'?"),
        (["--model=SASRec,xyz"], f"model=xyz is unknown; there are PruneRec, Popularity, DLLM2Rec, E4SRec, SLMRec, {SEQUENTIAL}"),
        (["--model=BPR"], f"model=BPR is not a sequential model; choose one of PruneRec, Popularity, DLLM2Rec, E4SRec, SLMRec, {SEQUENTIAL}"),
        (["--model="], "model is empty; name at least one, such as model=PruneRec"),
        (["--model=null"], "model is empty; name at least one, such as model=PruneRec"),
        (["--model=SASRec,GRU4Rec,SASRec"], "model has SASRec twice; leave one out"),
        (["--model=Pop,Popularity"], "model has Popularity twice; leave one out"),
        (["--compare=GRU4rec"], "compare=GRU4rec is unknown; did you mean 'GRU4Rec'?"),
        (["--compare=PruneRec,SASRec"], "compare=PruneRec is unknown"),
        (["--compare=SASRec,SASRec"], "compare has SASRec twice; leave one out"),
        (["--ranking.assistant=SASrec"], "ranking.assistant=SASrec is unknown; did you mean 'SASRec'?"),
        (["--ranking.assistant=Popularity"], "ranking.assistant=Popularity is unknown; there are BERT4Rec, CORE, Caser, FEARec"),
        (["--ranking.assistant=PruneRec"], "ranking.assistant=PruneRec is unknown; did you mean 'GRU4Rec'?"),
        (["--ranking.assistant=BPR"], "ranking.assistant=BPR is not a sequential model; choose one of BERT4Rec, CORE"),
        (["--ranking.assistant=FDSA"], "ranking.assistant=FDSA needs more than user, item and time, which is all"),
        (["--ranking.assistant=DIN"], "ranking.assistant=DIN scores items one at a time, not the catalogue at once; choose one of"),
        (["--ranking.assistant=3"], "ranking.assistant=3: expected text"),
        # a misspelt model says nothing about its other keys
        (["--model=PruneRc", "--steps.2.heads=7"], "model=PruneRc is unknown; did you mean 'PruneRec'?"),
        (["--model=SASRecc", "--hidden_size=64", "--epochs=3"], "model=SASRecc is unknown; did you mean 'SASRec'?"),
        # keys
        (["--epohcs=3"], "epohcs is not a known key; did you mean 'epochs'?"),
        (["--leaner=sgd"], "leaner is not a known key; did you mean 'learner'?"),
        (["--a.b=3"], "a is not a known key"),
        (["--recbole={epochs: 3}"], "recbole is not a known key"),
        (["--kd_weight=0.5"], "kd_weight=0.5 is a key of restore; write --restore.kd_weight=0.5"),
        (["--beams=30"], "beams=30 is a key of ranking; write --ranking.beams=30"),
        (["--heads=2"], "heads=2 is a key of width; write --steps.<number>.heads=2"),
        (["--hidden_size=64"], "hidden_size=64 is a key of a model in compare; write --baselines.hidden_size=64"),
        (["--hidden_size=64", "--compare="], "hidden_size is not a known key"),
        (["--hiden_size=64", "--model=SASRec"], "hiden_size is not a known key; did you mean 'hidden_size'?"),
        (["--num_layers=2", "--model=SASRec"], "num_layers is not a known key; did you mean 'n_layers'?"),
        (["--baselines.hiden_size=64"], "baselines.hiden_size is not a key of RecBole's; did you mean 'hidden_size'?"),
        (["--baselines.kd_weight=1"], "baselines.kd_weight is not a key of RecBole's"),
        (["--baselines.topk=5"], "baselines.topk cannot be set: it is the same for all models of a table; write --topk=5"),
        (["--baselines.ITEM_ID_FIELD=x"], "baselines.ITEM_ID_FIELD cannot be set: it is the same for all models of a table; write --ITEM_ID_FIELD=x"),
        (["--restore.kd_wieght=1"], "restore.kd_wieght is unknown; did you mean 'kd_weight'?"),
        (["--ranking.size=1"], "ranking.size is unknown; there are search, beams, length_penalty, budget, assistant"),
        (["--steps.2.heds=2"], "steps.2.heds is unknown; did you mean 'heads'?"),
        (["--steps.3.heads=2"], "steps.3.heads is unknown; there are restore, do, intermediate, criterion, tau, quantile, taylor"),
        (["--steps.2.restore.epoch=2"], "steps.2.restore.epoch is unknown; did you mean 'epochs'?"),
        (["--steps.1.restore.epochs=2"], "steps.1.restore is unknown; there are do"),
        (["--train_neg_sample_args.sampl_num=2", "--model=SASRec"], "train_neg_sample_args.sampl_num is unknown; did you mean 'sample_num'?"),
        # values of ours
        (["--epochs=null"], "epochs=null: expected a whole number"),
        (["--epochs="], "epochs=null: expected a whole number"),
        (["--epochs=2.0"], "epochs=2.0: expected a whole number"),
        (["--epochs=-1"], "epochs=-1: expected at least 0"),
        (["--train_batch_size=0"], "train_batch_size=0: expected at least 1"),
        (["--seed", "-1"], "seed=-1: expected at least 0"),
        (["--learning_rate=1e"], "learning_rate='1e': expected a number"),
        (["--learning_rate=0"], "learning_rate=0: expected more than 0"),
        (["--learning_rate=.inf"], "learning_rate=inf: expected a finite number"),
        (["--learning_rate=" + "9" * 400], f"learning_rate={'9' * 100}...: expected a finite number"),
        (["--epochs=2020-01-01"], "epochs=2020-01-01: expected a whole number"),
        (["--epochs=010"], "epochs='010': expected a whole number"),  # 8 in YAML
        (["--epochs=1:30"], "epochs='1:30': expected a whole number"),  # 90 in YAML
        (["--dataset=\udcff"], "dataset='\\udcff': expected text in UTF-8"),  # what Python makes of an argument that is not
        (["--learning_rate=true"], "learning_rate=true: expected a number"),
        (["--packing=1"], "packing=1: expected true or false"),
        (["--packing=maybe"], "packing='maybe': expected true or false"),
        (["--packing="], "packing=null: expected true or false"),
        (["--dataset="], "dataset=null: expected text"),
        (["--topk=ten"], "topk.1='ten': expected a whole number"),
        (["--topk=5,0"], "topk.2=0: expected at least 1"),
        (["--topk="], "topk is empty; name at least one, such as topk=10,20"),
        (["--topk=5,5"], "topk has 5 twice; leave one out"),
        (["--metrics=[]"], "metrics is empty; name at least one, such as metrics=Hit,NDCG"),
        (["--metrics=Hit,NDGC"], "metrics=NDGC is unknown; did you mean 'NDCG'?"),
        (["--metrics=Hit,hit"], "metrics has hit twice; leave one out"),
        (
            ["--valid_metric=MRR@10"],
            "valid_metric=MRR@10 is not measured; choose one of Hit@10, Hit@20, NDCG@10, NDCG@20, or add it to metrics and topk",
        ),
        (["--valid_metric=NDCG@5"], "valid_metric=NDCG@5 is not measured; choose one of Hit@10"),
        (["--valid_metric=NDCG"], "valid_metric=NDCG is not measured; choose one of Hit@10"),
        (["--valid_metric=NDCG@10", "--topk=5"], "valid_metric=NDCG@10 is not measured; choose one of Hit@5, NDCG@5, or add it to metrics and topk"),
        (["--template=lst"], "template=lst: expected one of list, lines, bigrec; did you mean 'list'?"),
        (["--steps.2.criterion=prunrec"], "steps.2.criterion=prunrec: expected one of prunerec, random"),
        (["--split=gobal_time"], "split=gobal_time: expected one of global_time, leave_one_out; did you mean 'global_time'?"),
        (["--adam_betas=0.9"], "adam_betas=[0.9]: expected 2 values"),
        (["--adam_betas="], "adam_betas=[]: expected 2 values"),
        (["--adam_betas=0.9,1"], "adam_betas.2=1: expected less than 1"),
        (["--adam_betas=0.9,0.9,0.9"], "adam_betas=[0.9, 0.9, 0.9]: expected at most 2 values"),
        (["--restore=3"], "restore=3: expected keys and values"),
        (["--restore={1: 2}"], "restore.1 is unknown; there are kd_weight"),
        (["--baselines={1: 2}"], "baselines.1 is not a key of RecBole's"),
        (["--restore.kd_weight=2"], "restore.kd_weight=2: expected at most 1"),
        (["--restore.kd_loss=reverse"], "restore.kd_loss=reverse: expected one of forward_kl, reverse_kl, "),
        (["--steps.2.restore.epochs=x"], "steps.2.restore.epochs='x': expected a whole number"),
        (["--steps.2.kv_policy=grup"], "steps.2.kv_policy=grup: expected one of expand, group, balanced, merge; did you mean 'group'?"),
        (["--steps.2.heads="], "steps.2.heads=null: expected a whole number"),
        (["--baselines=3"], "baselines=3: expected keys and values"),
        # steps
        (["--steps=[]"], "steps is empty; give at least {do: finetune}, or a teacher and one pruning step"),
        (["--steps="], "steps is empty; give at least {do: finetune}, or a teacher and one pruning step"),
        (["--steps=3"], "steps.1=3: expected keys and values, such as {do: finetune}"),
        (["--steps.2=3"], "steps.2=3: expected keys and values, such as {do: finetune}"),
        (["--steps=[{do: finetune}, {do: widht}]"], "steps.2.do=widht is unknown; did you mean 'width'?"),
        (["--steps=[{do: finetune}, {heads: 2}]"], "steps.2.do is missing; expected one of finetune, vocabulary, width, mlp, depth"),
        (["--steps=[{do: finetune}, {do: mlp}]"], "steps.2.intermediate is missing, and has no default; write --steps.2.intermediate=<value>"),
        (["--steps=[{do: depth, layers: 2}]"], "steps must have one finetune, before all pruning, got it at no place; or name a --teacher=<folder>"),
        (["--steps=[{do: depth, layers: 2}, {do: finetune}]"], "steps must have one finetune, before all pruning, got it at [2]"),
        # shapes of tiny
        (["--steps.2.heads=7"], "steps.2.heads=7 is more than the model's 4"),
        (
            ["--steps.2.heads=3"],
            "steps.2.heads=3 is not a multiple of 2, the heads that share one key/value head; choose 2 or 4, or kv_policy=expand",
        ),
        (["--steps.2.hidden=129"], "steps.2.hidden=129 is more than the model's 128"),
        (["--steps.3.intermediate=385"], "steps.3.intermediate=385 is more than the model's 384"),
        (["--steps.4.layers=5"], "steps.4.layers=5 is more than the model's 4"),
        # what does not fit together
        (
            ["--steps.4.restore.start=random", "--restore.epochs=0"],
            "steps.4.restore.start=random with restore.epochs=0 leaves a model that knows nothing; give it epochs, or start=cut",
        ),
        (["--topk=10,50"], "ranking.beams=20 is smaller than topk=50; choose ranking.beams=50 or more"),
        (
            ["--ranking.search=exact", "--ranking.length_penalty=-1"],
            "ranking.length_penalty is read by search=beam alone, got search=exact; leave it out",
        ),
        (
            ["--ranking.search=exact", "--ranking.popularity_weight=1"],
            "ranking.popularity_weight is read by search=grounding alone, got search=exact; leave it out",
        ),
        (["--ranking.popularity_weight=0"], "ranking.popularity_weight is read by search=grounding alone, got search=beam; leave it out"),
        (["--ranking.budget=10"], "ranking.budget is read by search=exact alone, got search=beam; leave it out"),
        (
            ["--ranking.search=grounding", "--softmax=catalogue"],
            "ranking.search=grounding writes titles freely, which softmax=catalogue does not teach; choose softmax=vocabulary or another search",
        ),
        (
            ["--softmax=vocabulary", "--ranking.search=grounding", "--ranking.assistant=SASRec"],
            "ranking.assistant is read by search=beam and search=exact alone, got search=grounding; leave it out",
        ),
        (
            ["--softmax=vocabulary", "--ranking.search=grounding", "--ranking.beams=40"],
            "ranking.beams is read by search=beam and search=exact alone, got search=grounding; leave it out",
        ),
        (
            ["--softmax=vocabulary", "--ranking.search=grounding", "--ranking.assistant_weight=1"],
            "ranking.assistant_weight is read by search=beam and search=exact alone, got search=grounding; leave it out",
        ),
        (
            ["--ranking.assistant_weight=0.7"],
            "ranking.assistant_weight=0.7 weighs an assistant, and there is none; name one, such as ranking.assistant=SASRec",
        ),
        (["--ranking.assistant=SASRec", "--ranking.assistant_weight=1.1"], "ranking.assistant_weight=1.1: expected at most 1"),
        (["--template=bigrec"], "packing=true needs template=list or lines, got template=bigrec; choose packing=false"),
        (
            ["--packing=false", "--steps=[{do: finetune}, {do: mlp, intermediate: 64, restore: {chunkings: 1}}]"],
            "restore.chunkings cuts histories into chunks, which packing=false does not; leave it out",
        ),
        # values of RecBole's
        (["--use_gpu=1"], "use_gpu=1: expected true or false, such as true"),
        (["--use_gpu="], "use_gpu=null: expected true or false, such as true"),
        (["--eval_step=1.5"], "eval_step=1.5: expected a whole number, such as 1"),
        (["--eval_step=true"], "eval_step=true: expected a whole number, such as 1"),
        (["--hidden_size=big", "--model=SASRec"], "hidden_size='big': expected a whole number, such as 64"),
        (["--attn_dropout_prob=x", "--model=SASRec"], "attn_dropout_prob='x': expected a number, such as 0.5"),
        (["--baselines.epochs=many"], "baselines.epochs='many': expected a whole number, such as 300"),
        (["--baselines.train_neg_sample_args=5"], "baselines.train_neg_sample_args=5: expected keys and values"),
        (["--baselines.train_neg_sample_args.alpha=x"], "baselines.train_neg_sample_args.alpha='x': expected a number, such as 1.0"),
    ],
)
def test_one_mistake_is_one_sentence(argv, expected):
    found = mistakes(*argv)
    assert len(found) == 1, found
    assert found[0].startswith(expected), found[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["--hidden_size=64", "--model=SASRec"],
        ["--attn_dropout_prob=1", "--model=SASRec"],  # a whole number where RecBole's default has a point
        ["--train_neg_sample_args=null", "--model=SASRec"],
        ["--clip_grad_norm={max_norm: 5}", "--model=SASRec"],  # RecBole's default is null, so anything goes
        ["--metrics=hit,ndcg"],
        ["--topk=50", "--ranking.beams=50"],
        ["--topk=50", "--softmax=vocabulary", "--ranking.search=grounding", "--ranking.popularity_weight=0"],
        ["--ranking.length_penalty=-0.5", "--ranking.assistant=SASRec", "--ranking.assistant_weight=0"],
        ["--ranking.search=exact", "--ranking.budget=9", "--ranking.assistant=GRU4Rec", "--compare=", "--baselines.dropout_prob=0.1"],  # GRU4Rec's
        ["--template=bigrec", "--packing=false"],
        ["--steps.2.heads=3", "--steps.2.kv_policy=expand"],
    ],
)
def test_what_is_right_is_let_through(argv):
    load_arguments(argv)


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_done_otherwise_here_is_refused_with_the_reason(key):
    assert mistakes(f"--{key}=x", f"--baselines.{key}=y") == [
        f"{key} cannot be set: {REFUSED[key]}",
        f"baselines.{key} cannot be set: {REFUSED[key]}",
    ]


def test_the_tables_name_keys_that_recbole_has():
    general, compared = recbole_defaults(()), recbole_defaults(OURS)
    assert set(REFUSED) | NULL_TOO | SHARED | TRAINING <= set(general) and set(DEFAULT_IS_NULL) | set(LEAST) <= set(compared)
    assert {key for key, default in compared.items() if default is None} == {*DEFAULT_IS_NULL, *(key for key in REFUSED if general[key] is None)}
    assert set(CHOICES) - {"distribution", "loss_type", "hidden_act"} <= set(compared)
    assert all(
        default in CHOICES[key]
        for key, default in recbole_defaults([*OURS, *recbole_models()]).items()
        if key in CHOICES and key not in ("rm_dup_inter", "state")
    )


def test_all_of_recboles_sequential_models_are_known():
    folder = next(iter(recbole_models().values())).parent.parent.parent / "model" / "sequential_recommender"
    assert {name.lower() for name in recbole_models()} == {path.stem for path in folder.glob("*.py")} - {"__init__"}


def test_the_names_of_the_families_are_those_of_the_families():
    assert set(FAMILY_NAMES) == set(FAMILIES)


def test_a_folders_shape_is_what_the_steps_must_fit(tmp_path):
    backbone = f"--backbone={write_folder(tmp_path)}"
    assert load_arguments([backbone, STEPS % (3, 24)]).settings.backbone == str(tmp_path)
    assert mistakes(backbone, STEPS % (9, 24)) == ["steps.2.heads=9 is more than the model's 6"]
    assert mistakes(backbone, STEPS % (3, 25)) == ["steps.2.hidden=25 is not a multiple of heads=3, as llama needs; choose hidden=24"]
    write_folder(tmp_path, model_type="qwen2")
    assert load_arguments([backbone, STEPS % (3, 25)]).settings.backbone == str(tmp_path)


def test_a_folder_without_key_value_heads_has_one_for_every_head(tmp_path):
    write_folder(tmp_path, num_key_value_heads=None)
    assert load_arguments([f"--backbone={tmp_path}", STEPS % (5, 25)]).settings.steps[1].heads == 5


def test_a_teacher_takes_the_place_of_the_finetune_step(tmp_path):
    teacher = f"--teacher={write_folder(tmp_path)}"
    steps = f"steps.1 is finetune, but teacher={tmp_path} is fine-tuned already; leave one of the two out"
    assert mistakes(teacher, STEPS % (3, 24)) == [steps]
    assert load_arguments([teacher, "--steps=[{do: depth, layers: 2}]"]).settings.teacher == str(tmp_path)
    assert mistakes(teacher, "--steps=[{do: depth, layers: 4}]") == ["steps.1.layers=4 is more than the model's 3"]
    assert mistakes("--teacher=elsewhere", "--steps=[{do: depth, layers: 2}]") == [
        "teacher=elsewhere is not a folder; give the path of one with a Hugging Face model"
    ]


def test_what_does_not_fit_together_is_found_beside_what_is_wrong_alone():
    assert mistakes(
        *("--steps.4.layers=9", "--topk=50", "--epohcs=3", "--epochs=x", "--steps.3.intermediate=x", "--steps.2.hidden=0", "--ranking.memory_mib=0"),
        *("--template=bigrec", "--steps.2.greedy=true", "--steps.2.scope=global", "--teacher=/nowhere"),
    ) == [
        "epohcs is not a known key; did you mean 'epochs'?",
        "teacher=/nowhere is not a folder; give the path of one with a Hugging Face model",
        "epochs='x': expected a whole number",
        "steps.2.hidden=0: expected at least 1",
        "steps.3.intermediate='x': expected a whole number",
        "ranking.memory_mib=0: expected at least 1",
        "steps.1 is finetune, but teacher=/nowhere is fine-tuned already; leave one of the two out",
        "steps.2.greedy=true chooses heads layer by layer, got scope=global, which chooses for all at once; choose scope=layer or greedy=false",
        "ranking.beams=20 is smaller than topk=50; choose ranking.beams=50 or more",
        "packing=true needs template=list or lines, got template=bigrec; choose packing=false",
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--steps.4.layers=9", "--steps.2.heads=x"], ["steps.4.layers=9 is more than the model's 4", "steps.2.heads='x': expected a whole number"]),
        (["--topk=50", "--ranking.beams=x"], ["ranking.beams='x': expected a whole number"]),
        (["--topk=50,x"], ["topk.2='x': expected a whole number"]),
        (
            ["--ranking.search=exact", "--ranking.length_penalty=x", "--ranking.popularity_weight=2"],
            ["ranking.length_penalty='x': expected a number", "ranking.popularity_weight is read by search=grounding alone, got search=exact"],
        ),
        (["--ranking.search=exct", "--ranking.popularity_weight=2"], ["ranking.search=exct: expected one of beam, exact, grounding"]),
        (["--topk=50", "--ranking=x"], ["ranking='x': expected keys and values"]),
        (["--template=bigrec", "--packing=x"], ["packing='x': expected true or false"]),
        (
            ["--steps=[{do: mlp, intermediate: x}]"],
            [
                "steps.1.intermediate='x': expected a whole number",
                "steps must have one finetune, before all pruning, got it at no place; or name a --teacher=<folder>",
            ],
        ),
        (
            ["--steps=[{do: finetun}, 3]"],
            ["steps.1.do=finetun is unknown; did you mean 'finetune'?", "steps.2=3: expected keys and values, such as "],
        ),
        (
            ["--steps.2.do=finetune", "--steps.2.greedy=true"],
            [*["steps.2."] * 4, "steps must have one finetune, before all pruning, got it at [1, 2]"],
        ),
    ],
)
def test_a_check_says_nothing_where_a_key_that_it_looks_at_is_wrong(argv, expected):
    found = mistakes(*argv)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def test_what_only_prunerec_reads_is_judged_only_where_it_runs():
    argv = ["--topk=50", "--template=bigrec"]
    assert load_arguments([*argv, "--model=SASRec"]).settings.topk == (50,)
    assert len(mistakes(*argv)) == 2


@pytest.mark.parametrize(
    ("argv", "device"),
    [
        ([], "auto"),
        (["--device=cpu"], "cpu"),
        (["--device=cuda"], "cuda"),
        (["--device", "cuda:1"], "cuda:1"),
        (["--use_gpu=true"], "auto"),
        (["--use_gpu=false"], "cpu"),
        (["--use_gpu=false", "--device=cpu"], "cpu"),
        (["--gpu_id="], "cpu"),
        (["--gpu_id=0"], "cuda:0"),
        (["--gpu_id=1", "--device=cuda"], "cuda:1"),
        (["--gpu_id=1", "--device=cuda:1", "--model=SASRec"], "cuda:1"),
    ],
)
def test_the_device_is_named_by_our_key_or_recboles(argv, device):
    settings = load_arguments(argv).settings
    assert settings.device == device and not {"gpu_id", "use_gpu", "device"} & set(settings.recbole)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--device=gpu"], "device=gpu: expected one of auto, cpu, cuda, cuda:<number>"),
        (["--device=cuda:"], "device=cuda:: expected one of auto, cpu, cuda, cuda:<number>"),
        (["--device=cuda:-1"], "device=cuda:-1: expected one of auto, cpu, cuda, cuda:<number>"),
        (["--device=null"], "device=null: expected text"),
        (["--gpu_id=0,1"], "gpu_id='0,1': expected the number of one GPU, such as 0, or nothing for the CPU; a run uses one device"),
        (["--gpu_id=-1"], "gpu_id='-1': expected the number of one GPU"),
        (["--device=cpu", "--gpu_id=1"], "device=cpu and gpu_id=1 contradict each other; leave one out"),
        (["--device=cuda:0", "--gpu_id=1"], "device=cuda:0 and gpu_id=1 contradict each other; leave one out"),
        (["--use_gpu=false", "--gpu_id=0"], "use_gpu=false and gpu_id=0 contradict each other; leave one out"),
        (["--baselines.gpu_id=1"], "baselines.gpu_id cannot be set: it is the same for all models of a table; write --gpu_id=1"),
    ],
)
def test_a_device_that_cannot_be_is_refused(argv, expected):
    (found,) = mistakes(*argv)
    assert found.startswith(expected)


def test_a_dataset_is_looked_for_where_recbole_would(tmp_path):
    (tmp_path / "films").mkdir()
    path = f"--data_path={tmp_path}/"
    expected = f"dataset=film is not there: expected {tmp_path}/film/film.inter and .item (RecBole's atomic files); found ml-100k"
    assert mistakes(path, "--dataset=film") == [expected]
    (tmp_path / "films" / "films.train.inter").touch()
    assert mistakes(path, "--dataset=film") == [f"{expected.removesuffix('ml-100k')}films, ml-100k; did you mean 'films'?"]
    assert load_arguments([path, "--dataset=films"]).settings.dataset == "films"
    assert mistakes(f"--dataset={tmp_path}/films") == [f"dataset={tmp_path}/films is a path; write --data_path={tmp_path} --dataset=films"]


@pytest.mark.parametrize("model", NEED_FEATURES)
def test_a_model_that_needs_features_is_refused(model):
    (problem,) = mistakes(f"--model={model}")
    assert problem.startswith(f"model={model} needs more than user, item and time") and "SASRec" in problem and model in recbole_models()
