"""Every setting of the method, with its type, range and default, validated before any data is read.

The defaults are the paper's method as docs/method states it; recipes lie in `properties/preset/`. RecBole's own keys keep their names and meaning;
for PruneRec they are the fine-tuning's. This module knows nothing of torch, transformers or RecBole, so that a mistake is answered at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator, model_validator

Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]


class Group(BaseModel):
    """A group of settings: no unknown key, no change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Restore(Group):
    """Restoration by distillation, after every pruning step (METHOD 5). A step may override any of these."""

    kd_weight: Share = 0.8  # lambda: loss = kd_weight * KD + (1 - kd_weight) * CE
    kd_loss: Literal["forward_kl", "reverse_kl", "symmetric_kl", "skewed_forward_kl", "skewed_reverse_kl", "js", "total_variation"] = "forward_kl"
    temperature: Positive = 1.0
    teacher: Literal["original", "previous"] = "original"  # the fine-tuned model, or the model before this step's cut
    epochs: Natural = 3  # at most; 0 leaves the cut model as it is
    learning_rate: Positive | None = None  # None: the fine-tuning's


# What one step's restoration does differently: the same keys with the same bounds; None keeps the run's value.
RestoreOverride = create_model(
    "RestoreOverride",
    __base__=Group,
    **{name: (field.rebuild_annotation() | None, None) for name, field in Restore.model_fields.items()},  # type: ignore[call-overload]
)


class Finetune(Group):
    """Full fine-tuning of the backbone on titles: the teacher, "BIGRec" (METHOD 1). Its values are the run's own: epochs, learning_rate, ..."""

    do: Literal["finetune"]


class PruningStep(Group):
    """What all pruning steps share."""

    criterion: Literal["prunerec"] = "prunerec"
    restore: RestoreOverride = RestoreOverride()  # type: ignore[valid-type]


class Width(PruningStep):
    """Stage I: attention heads and hidden dimensions (METHOD 2)."""

    do: Literal["width"]
    heads: Count  # query heads that stay in every layer
    hidden: Count  # residual dimensions that stay
    kv_policy: Literal["expand", "group", "balanced", "merge"] = "group"  # which key/value heads stay
    kv_heads: Count | None = None  # follows from expand and group; balanced keeps them all; merge needs it
    recursion: Share = 0.7  # alpha: s[l+1] = recursion * s[l] + (1 - recursion) * own[l+1]
    kl_positions: Literal["answer", "first"] = "answer"  # every answer position, or the last prompt position alone
    greedy: Switch = False  # heads chosen for removal in earlier layers stay suppressed while later ones are scored
    head_epsilon: Share = 0.0  # a suppressed head's attention logits are scaled by this
    hidden_score: Literal["product", "gradient", "embedding"] = "product"
    norm_rescale: Switch = True  # norm weights times mean rms(kept) / rms(all)


class Mlp(PruningStep):
    """Stage II: MLP width (METHOD 3)."""

    do: Literal["mlp"]
    intermediate: Count  # dimensions that stay in every layer
    tau: NonNegative | None = None  # activation threshold; None: the quantile below, per layer
    quantile: Share = 0.9


class Depth(PruningStep):
    """Stage III: layers (METHOD 4)."""

    do: Literal["depth"]
    layers: Count  # layers that stay
    search: Literal["greedy", "oneshot"] = "greedy"


Step = Annotated[Finetune | Width | Mlp | Depth, Field(discriminator="do")]


class Ranking(Group):
    """Ranking the catalogue by beam search over the prefix tree of titles (METHOD 1)."""

    beams: Count = 20  # at least the largest topk
    batch_size: Count = 64  # users ranked at once


class Settings(Group):
    """Everything that one run is made from."""

    # What runs
    model: tuple[Text, ...] = ("PruneRec",)
    dataset: Text = "ml-100k"
    preset: Text = "tiny"
    compare: tuple[Text, ...] = ()  # RecBole models beside a PruneRec that is named alone
    baselines: dict[str, Any] = {}  # RecBole's settings for the other models of a run that has PruneRec
    recbole: dict[str, Any] = {}  # RecBole's own keys, as given; filled from the top level
    worthless: Switch = False  # a smoke run: every output says that its figures are worth nothing

    # Data and protocol
    data_path: Text = "dataset"
    checkpoint_dir: Text = "saved"
    split: Literal["global_time", "leave_one_out"] = "global_time"
    title_field: Text = "title"
    MAX_ITEM_LIST_LENGTH: Count = 10
    metrics: tuple[Text, ...] = ("Hit", "NDCG")
    topk: tuple[Count, ...] = (10, 20)
    test_rows: Count | None = 3000  # None: all
    step_test_rows: Count | None = Field(500, validate_default=True)  # at most these rank what lies between teacher and final model
    training_rows: Count | None = None  # the first so many training samples; None: all
    valid_rows: Count | None = None  # validation samples behind early stopping; None: all
    seed: Natural = 2020

    # Backbone and text
    backbone: Text = "tiny"  # "tiny", a Hugging Face name, a folder, or a .gguf file
    teacher: Text | None = None  # a folder with a fine-tuned model, instead of the finetune step
    template: Literal["list", "bigrec"] = "list"
    max_prompt_tokens: Count = 512
    packing: Switch = True
    packing_stride: Count = Field(11, validate_default=True)  # at most a chunk, MAX_ITEM_LIST_LENGTH + 1 titles

    # Fine-tuning; restoration takes what it does not name from here
    epochs: Natural = 3
    learning_rate: Positive = 3e-4
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_steps: Natural = 20
    train_batch_size: Count = 128  # rows: samples, or chunks where they are packed
    weight_decay: NonNegative = 0.01
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    clip: Positive = 1.0  # gradient norm
    stopping_step: Natural = 0  # RecBole's meaning: stop once more evaluations than this in a row were no better
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    # The method
    calibration_samples: Count = 128
    steps: tuple[Step, ...] = (Finetune(do="finetune"),)
    restore: Restore = Restore()
    ranking: Ranking = Ranking()

    show_progress: Switch = True

    @property
    def longest_history(self) -> int:
        """RecBole's MAX_ITEM_LIST_LENGTH."""
        return self.MAX_ITEM_LIST_LENGTH

    def restore_of(self, step: PruningStep) -> Restore:
        """The restoration of one step: the run's, with the step's own values."""
        own = {key: value for key, value in step.restore.model_dump().items() if value is not None}  # type: ignore[attr-defined]
        return self.restore.model_copy(update=own)

    @field_validator("step_test_rows")
    @classmethod
    def _within_test_rows(cls, rows: int | None, others: ValidationInfo) -> int | None:
        """The steps' rows are a part of the test rows, so they follow those down."""
        return min((count for count in (rows, others.data.get("test_rows")) if count is not None), default=None)

    @field_validator("packing_stride")
    @classmethod
    def _within_chunk(cls, stride: int, others: ValidationInfo) -> int:
        """A stride beyond the chunk would leave titles out, so it follows the chunk down."""
        return min(stride, others.data.get("MAX_ITEM_LIST_LENGTH", stride) + 1)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        """What no single key can tell. All problems are reported together."""
        problems = []
        if not self.steps:
            problems.append("steps is empty; give at least {do: finetune}, or a teacher and one pruning step")
        teachers = [number for number, step in enumerate(self.steps, 1) if step.do == "finetune"]
        if self.steps and self.teacher is None and teachers != [1]:
            problems.append(f"steps must have one finetune, first, got it at {teachers or 'no place'}; or name a --teacher=<folder>")
        if self.teacher is not None and teachers:
            problems.append(f"steps.{teachers[0]} is finetune, but teacher={self.teacher} is fine-tuned already; leave one of the two out")
        if max(self.topk, default=0) > self.ranking.beams:
            problems.append(
                f"ranking.beams={self.ranking.beams} is smaller than topk={max(self.topk)}; choose ranking.beams={max(self.topk)} or more"
            )
        if self.packing and self.template != "list":
            problems.append(f"packing=true needs template=list, got template={self.template}; choose packing=false")
        if problems:
            raise ValueError("\n".join(problems))
        return self
