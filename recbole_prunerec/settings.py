"""Every setting of the method, with its type, range and default, validated before any data is read.

The defaults are the paper's method as docs/method states it; recipes lie in `properties/preset/`. RecBole's own keys keep their names and meaning;
for PruneRec they are the fine-tuning's. This module knows nothing of torch, transformers or RecBole, so that a mistake is answered at once.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator, model_validator

from recbole_prunerec.validation.conflicts import conflicts

LARGEST = 2**31 - 1  # what every library takes as an integer, a seed included
Count = Annotated[int, Field(ge=1, le=LARGEST, strict=True)]
TwoOrMore = Annotated[int, Field(ge=2, le=LARGEST, strict=True)]
Natural = Annotated[int, Field(ge=0, le=LARGEST, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Penalty = Annotated[float, Field(ge=-5, le=5, allow_inf_nan=False, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(pattern=r"\S")]
KdLoss = Literal["forward_kl", "reverse_kl", "symmetric_kl", "skewed_forward_kl", "skewed_reverse_kl", "js", "total_variation"]

WidthCriterion = Literal["prunerec", "random", "magnitude", "wanda", "sparsegpt", "llm_pruner", "flap", "minitron"]
MlpCriterion = WidthCriterion
DepthCriterion = Literal["prunerec", "random", "magnitude", "minitron", "shortgpt", "laco", "blockpruner"]
Taylor = Literal["first", "second", "mix", "vector"]

# Keys that a run may change when it goes on, beside restore.cache; those of the second line change figures by rounding alone.
CHANGES_NO_FIGURE = (
    *("checkpoint_dir", "data_path", "show_progress", "checkpoint_minutes"),
    *("micro_batch_tokens", "gradient_checkpointing", "attn_implementation"),
)


class Group(BaseModel):
    """A group of settings: no unknown key, no change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def default(cls, key: str) -> Any:
        """The default of a key that has one."""
        return cls.model_fields[key].default


class Restore(Group):
    """Restoration by distillation, after every pruning step (METHOD 5). A step may override any of these."""

    kd_weight: Share = 0.8  # lambda: loss = kd_weight * KD + (1 - kd_weight) * CE
    kd_loss: KdLoss = "forward_kl"  # KD: how far the student's distribution is from the teacher's
    temperature: Positive = 1.0  # both distributions are softmax(logits / temperature) in KD; the cross-entropy has 1
    teacher: Literal["original", "previous"] = "original"  # the fine-tuned model, or the model before this step's cut
    tutor_weight: Share = 0.0  # of tutor.model's log-probabilities in what is learnt; the teacher's have the rest, as D3 mixes both in ranking
    start: Literal["cut", "random"] = "cut"  # the cut model's weights, or weights drawn anew, which tells what the old ones are worth
    epochs: Natural = 3  # at most; 0 leaves the cut model as it is
    learning_rate: Positive | None = None  # None: the fine-tuning's
    chunkings: Count | None = None  # ways to cut histories into chunks, taken in turn, so that the teacher reads no more; None: as many as epochs
    cache: Switch = True  # what the teacher says is computed once and kept on disk; false: the teacher runs beside the student, in every epoch


# What one step's restoration does differently: the same keys with the same bounds; None keeps the run's value.
RestoreOverride = create_model(
    "RestoreOverride",
    __base__=Group,
    **{name: (field.rebuild_annotation() | None, None) for name, field in Restore.model_fields.items()},  # type: ignore[call-overload]
)


class Tutor(Group):
    """What fine-tuning learns from beside the titles (METHOD 1): the item probabilities of a model of RecBole's, token by token."""

    model: Text | None = None  # a sequential model of RecBole's, trained beside, that reads histories alone; None: there is no tutor
    weight: Share = 0.5  # of the divergence from it; the titles' cross-entropy has the rest


class Finetune(Group):
    """Full fine-tuning of the backbone on titles: the teacher, "BIGRec" (METHOD 1). Its values are the run's own: epochs, learning_rate, ..."""

    do: Literal["finetune"]  # the kind of step


class Vocabulary(Group):
    """Tokens that no title needs go (METHOD 8). Nothing is scored or restored; it may stand before the fine-tuning, which gets cheaper."""

    do: Literal["vocabulary"]  # the kind of step


class PruningStep(Group):
    """What all pruning steps share."""

    restore: RestoreOverride = RestoreOverride()  # type: ignore[valid-type]  # what this step's restoration does differently: any key of restore


class Width(PruningStep):
    """Stage I: attention heads and hidden dimensions (METHOD 2)."""

    do: Literal["width"]  # the kind of step
    heads: Count  # query heads that stay in every layer
    hidden: Count  # residual dimensions that stay
    criterion: WidthCriterion = "prunerec"  # what scores heads and dimensions (docs/criteria.md); random is what others have to beat
    kv_policy: Literal["expand", "group", "balanced", "merge"] = "group"  # which key/value heads stay
    scope: Literal["layer", "global"] = "layer"  # heads chosen in each layer, or one list of places for all, by mean score over layers
    kv_heads: Count | None = None  # follows from expand and group; balanced keeps them all; merge needs it
    recursion: Share = 0.7  # alpha: s[l+1] = recursion * s[l] + (1 - recursion) * own[l+1]
    kl_positions: Literal["answer", "first"] = "answer"  # every answer position, or the last prompt position alone
    greedy: Switch = False  # heads chosen for removal in earlier layers stay suppressed while later ones are scored
    head_epsilon: Share = 0.0  # a suppressed head's attention logits are scaled by this
    hidden_score: Literal["product", "gradient", "embedding"] = "product"  # mean |embedding * gradient|, |gradient|, or |embedding weight|
    taylor: Taylor = "first"  # criterion=llm_pruner: |w g|, w^2 g^2, |w g - w^2 g^2 / 2|, or |sum of w g| over a row or column
    norm_rescale: Switch = True  # norm weights times mean rms(kept) / rms(all)


class Mlp(PruningStep):
    """Stage II: MLP width (METHOD 3)."""

    do: Literal["mlp"]  # the kind of step
    intermediate: Count  # dimensions that stay in every layer
    criterion: MlpCriterion = "prunerec"  # what scores dimensions (docs/criteria.md)
    tau: NonNegative | None = None  # activation threshold; None: the quantile below, per layer
    quantile: Share = 0.9  # of a layer's activations, taken as its threshold where tau is null
    taylor: Taylor = "first"  # criterion=llm_pruner: |w g|, w^2 g^2, |w g - w^2 g^2 / 2|, or |sum of w g| over a row or column


class Depth(PruningStep):
    """Stage III: layers (METHOD 4)."""

    do: Literal["depth"]  # the kind of step
    layers: Count  # layers that stay
    criterion: DepthCriterion = "prunerec"  # what scores layers (docs/criteria.md)
    search: Literal["greedy", "oneshot"] = "greedy"  # measured again after every removed layer, or once


Pruning = Width | Mlp | Depth  # the steps that score, cut and restore
Step = Annotated[Finetune | Vocabulary | Pruning, Field(discriminator="do")]


class Rules(Group):
    """What becomes of Amazon's reviews before any model sees them (docs/amazon.md), in this order."""

    faults: Share = 0.05  # of the lines of a file that may be beyond use, and are left out; a file with more is refused
    title_rules: Literal["ours", "d3"] = "ours"  # entities decoded, titles with markup dropped; or the narrower cleaning of the paper's reference
    title_words: Count = 20  # an item whose title has more is dropped
    repeated: Literal["keep", "drop"] = "keep"  # interactions with an earlier one's user, item and time; the paper's reference keeps them
    window_start: Text | None = "2017-10"  # the month whose first instant (UTC) begins the window of time; None: it has no beginning
    window_end: Text | None = "2018-11"  # the month before whose first instant (UTC) the window ends; None: it has no end
    window_step: Count = 12  # months by which the window's start goes back while fewer than min_items items are left
    min_items: Natural = 10000  # items that have to be left; where the window has reached the first interaction, fewer have to do
    core: Natural = 5  # users and items with fewer interactions are dropped, again and again until none is left; 0: all stay

    @field_validator("window_start", "window_end", mode="before")
    @classmethod
    def _month(cls, month: object, field: ValidationInfo) -> object:
        if month is not None and not re.fullmatch(r"(19[7-9]\d|2\d{3})-(0[1-9]|1[0-2])", str(month)):
            usual = cls.default(str(field.field_name))
            raise ValueError(f"rules.{field.field_name}={month}: expected a month from 1970-01 on, such as {usual}, or null")
        return month

    @model_validator(mode="after")
    def _ends_after_its_start(self) -> Rules:
        if self.window_start and self.window_end and self.window_start >= self.window_end:
            raise ValueError(f"rules.window_start={self.window_start} is not before rules.window_end={self.window_end}; choose an earlier month")
        return self


class Ranking(Group):
    """Ranking the catalogue over the prefix tree of titles (METHOD 7)."""

    search: Literal["beam", "exact", "grounding"] = "beam"  # beam search; the provably best titles; BIGRec's nearest titles to a generated one
    beams: Count = 20  # at least the largest topk; the exact search expands as many prefixes at once
    length_penalty: Penalty = 0.0  # beam search: a title's score is its log-probability / tokens ** length_penalty
    budget: Count = 4096  # exact search: prefixes that a proof may take for a user; beyond, what was found is not proven
    assistant: Text | None = None  # D3: a RecBole model, trained beside, whose probabilities are mixed in at every prefix
    assistant_weight: Share = 0.5  # of the assistant's log-probability; the language model's has the rest
    popularity_weight: NonNegative | None = None  # grounding: distances are divided by (1 + popularity) ** this; None: chosen on validation
    memory_mib: Count | None = None  # for the users ranked at once; None: 1024, and on a GPU half of what is free

    def facts(self) -> dict[str, Any]:
        """What figures depend on: the search, its beams, and all else that is not as by default."""
        beams = {} if self.search == "grounding" else {"beams": self.beams}
        return {"search": self.search, **beams, **self.model_dump(exclude_defaults=True, exclude={"memory_mib"})}


class Settings(Group):
    """Everything that one run is made from."""

    # What runs
    model: tuple[Text, ...] = ("PruneRec",)  # PruneRec, Popularity, DLLM2Rec, E4SRec, SLMRec, or RecBole's sequential models; several are one table
    dataset: Text = "ml-100k"  # its name: a folder in data_path, RecBole's own ml-100k, or another of RecBole's, which is fetched
    preset: Text = "tiny"  # a recipe in properties/preset
    compare: tuple[Text, ...] = ()  # other models beside a PruneRec that is named alone
    baselines: dict[str, Any] = {}  # RecBole's settings of the other models in a run with PruneRec; under a model's name, in any run, of it alone
    recbole: dict[str, Any] = {}  # RecBole's own keys, as given; filled from the top level
    device: Text = "auto"  # auto (a GPU where torch sees one), cpu, cuda, or one of several GPUs as cuda:1; RecBole's gpu_id and use_gpu end up here
    worthless: Switch = False  # a smoke run: every output says that its figures are worth nothing

    # Data and protocol
    data_path: Text = "dataset"  # where the folders of datasets lie
    checkpoint_dir: Text = "saved"  # where the folders of runs lie
    rules: Rules | None = None  # of the paper for Amazon's reviews, applied once to the dataset's files; None: these are taken as they are
    split: Literal["global_time", "leave_one_out"] = "global_time"  # all samples by the target's time, 8:1:1, or each user's last two samples
    title_field: Text = "title"  # the column of the .item file that holds the titles
    encoding: Text = "utf-8"  # of the .inter and .item files
    merge_titles: Switch = False  # items that share a title become one before the k-core: the id with most interactions, ties to the first
    MAX_ITEM_LIST_LENGTH: Count = 10  # the longest history that a model sees, in items
    metrics: tuple[Text, ...] = ("Hit", "NDCG")  # RecBole's ranking metrics
    topk: tuple[Count, ...] = (10, 20)  # lengths of the list that the metrics look at
    ranked: Literal["test", "valid"] = "test"  # the samples that tables are of; valid: validation, by which settings may be chosen
    exclude_seen: Switch = False  # items of a history leave its ranking, whatever model ranks; RecBole leaves them in
    test_rows: Count | None = 3000  # of those samples; None: all
    step_test_rows: Count | None = Field(500, validate_default=True)  # at most these rank what lies between teacher and final model
    training_rows: Count | None = None  # the first so many training samples; None: all
    valid_rows: Count | None = None  # validation samples behind early stopping; None: all
    seed: Natural = 2020  # of everything that is drawn

    # Backbone and text
    backbone: Text = "tiny"  # "tiny", a Hugging Face name, a folder, or a .gguf file
    revision: Text | None = None  # of a backbone on the Hugging Face hub: a branch, a tag or a commit; None: its main branch
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"  # how attention is computed; auto: transformers' choice, sdpa
    teacher: Text | None = None  # a folder with a fine-tuned model, instead of the finetune step
    softmax: Literal["vocabulary", "catalogue"] = "vocabulary"  # probabilities over all tokens, or over those that go on with some title
    template: Literal["list", "lines", "bigrec"] = "list"  # a header and one quoted title a line; a bare title a line; the paper's instruction
    max_prompt_tokens: Count = 512  # a longer prompt drops its oldest titles
    max_title_tokens: Count = 256  # closing quote and terminator included; a longer title is refused
    title_tokens: Switch = False  # each title is made one token, whose embedding begins as the mean of those it is written in
    short_titles: Switch = False  # each title is read and written up to the first word that tells it from all others: fewer tokens
    packing: Switch = True  # several titles of a user are targets in one row; not for template=bigrec
    packing_titles: TwoOrMore | None = None  # of a chunk, at most; null: MAX_ITEM_LIST_LENGTH + 1, a history and its target
    packing_stride: Count = Field(11, validate_default=True)  # from chunk to chunk, in titles; at most a chunk

    # Fine-tuning; restoration takes what it does not name from here
    epochs: Natural = 3  # at most
    learning_rate: Positive = 3e-4  # AdamW's, at its highest
    schedule: Literal["linear", "cosine"] = "linear"  # of the learning rate after its warm-up, down to zero
    warmup_steps: Natural = 20  # a fifth of all steps at most
    train_batch_size: Count = 128  # rows: samples, or chunks where they are packed
    weight_decay: NonNegative = 0.01  # AdamW's; norms and biases have none
    adam_betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)  # AdamW's two rates of decay
    clip: Positive = 1.0  # gradient norm
    stopping_step: Natural = 0  # RecBole's meaning: stop once more evaluations than this in a row were no better
    micro_batch_tokens: Count | None = None  # padded tokens that go through the model at once, of a batch's; None: 4096, on a GPU 16384
    gradient_checkpointing: Switch = False  # activations are computed again for the backward pass: less memory, a third more time
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, and on a CPU with avx512_bf16 for large models
    checkpoint_minutes: Positive = 10.0  # within an epoch; there is one at each epoch's end, too
    tutor: Tutor = Tutor()  # of the fine-tuning, and of restoration by restore.tutor_weight

    # The method
    calibration_samples: Count = 128  # training samples behind all importance scores
    steps: tuple[Step, ...] = (Finetune(do="finetune"),)  # the method: finetune, then pruning steps in any order; vocabulary anywhere
    restore: Restore = Restore()  # after every pruning step
    ranking: Ranking = Ranking()  # how a model ranks the catalogue

    show_progress: Switch = True  # bars on the screen

    @property
    def longest_history(self) -> int:
        """RecBole's MAX_ITEM_LIST_LENGTH."""
        return self.MAX_ITEM_LIST_LENGTH

    @property
    def titles_in_chunk(self) -> int:
        """The most titles of a packed row."""
        return self.packing_titles or self.longest_history + 1

    @property
    def start(self) -> tuple[Literal["teacher", "backbone"], str]:
        """The key and the name of the model that the first step gets."""
        return ("teacher", self.teacher) if self.teacher else ("backbone", self.backbone)

    def restore_of(self, step: PruningStep) -> Restore:
        """The restoration of one step: the run's, with the step's own values."""
        own = {key: value for key, value in step.restore.model_dump().items() if value is not None}  # type: ignore[attr-defined]
        return self.restore.model_copy(update=own)

    def identity(self) -> dict[str, Any]:
        """What the figures depend on: two runs with the same are one run, which the second goes on with."""
        kept: dict[str, Any] = {"restore": {"cache"}, "steps": {"__all__": {"restore": {"cache"}}}}
        found = self.model_dump(mode="json", exclude={**dict.fromkeys(CHANGES_NO_FIGURE, True), **kept})
        for key in ("start", "chunkings", "tutor_weight"):  # runs from before there were these keys are found again
            value = found["restore"][key]
            for step in found["steps"]:
                if "restore" in step and step["restore"][key] in (None, value):
                    del step["restore"][key]
            if value == Restore.default(key):
                del found["restore"][key]
        for key in ("short_titles", "title_tokens", "exclude_seen", "packing_titles"):
            if not found[key]:
                del found[key]
        if self.tutor.model is None:
            del found["tutor"]
        if self.ranked == "test":
            del found["ranked"]
        return found

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        """Python's name of an encoding of text."""
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"encoding={encoding} is unknown; expected one that Python has, such as utf-8, cp1252 or utf-16") from None
        return encoding

    @field_validator("device")
    @classmethod
    def _known_device(cls, name: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
            raise ValueError(f"device={name}: expected one of auto, cpu, cuda, cuda:<number>")
        return name

    @field_validator("step_test_rows")
    @classmethod
    def _within_test_rows(cls, rows: int | None, others: ValidationInfo) -> int | None:
        """The steps' rows are a part of the test rows, so they follow those down."""
        return min((count for count in (rows, others.data.get("test_rows")) if count is not None), default=None)

    @field_validator("packing_stride")
    @classmethod
    def _within_chunk(cls, stride: int, others: ValidationInfo) -> int:
        """A stride beyond the chunk would leave titles out, so it follows the chunk down."""
        return min(stride, others.data.get("packing_titles") or others.data.get("MAX_ITEM_LIST_LENGTH", stride) + 1)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        """What no single key can tell. All problems are reported together."""
        problems = conflicts(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self
