"""E4SRec, a truncated language model that reads SASRec's item vectors, and SLMRec, the same with fewer layers, distilled from it."""

from __future__ import annotations

from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn, no_grad
from torch.nn import functional

from recbole_prunerec.backbone.family import Sizes
from recbole_prunerec.backbone.load import Backbone, load_backbone
from recbole_prunerec.compared.block_losses import BLOCKS, block_ends, cosine_loss, norm_loss, supervision_loss
from recbole_prunerec.compared.item_reader import ItemReader, layers_within
from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.data.samples import training_popularity
from recbole_prunerec.restore.losses import restoration_loss
from recbole_prunerec.settings import Settings
from recbole_prunerec.shipped import properties


class E4SRec(SequentialRecommender):
    """Scores are the last hidden state's projection times the items' vectors, which are those of the run's SASRec and never trained."""

    input_type = InputType.POINTWISE

    def __init__(self, config: RunConfig, dataset: NextItemDataset) -> None:
        super().__init__(config, dataset)
        backbone = _language_model(config.settings, dataset, self.n_items)
        sizes = Sizes.of(backbone.model)
        self.layers = self._count_layers(config, sizes)
        table = config.helpers["SASRec"].item_embedding.weight.detach().cpu()
        self.reader = ItemReader(backbone.model, backbone.tokenizer, table, self.layers)
        kept = (sizes.non_embedding_parameters - sizes.hidden) * self.layers / sizes.layers + sizes.hidden
        self.note = f"{self.layers} of {sizes.layers} layers, {100 * kept / sizes.non_embedding_parameters:.1f} % of the language model"

    def _count_layers(self, config: RunConfig, sizes: Sizes) -> int:
        return min(config["llm_layers"], sizes.layers)

    def states(self, interaction: Interaction) -> list[Tensor]:
        """Hidden states at the last position after each layer. Shape (batch, hidden) each."""
        return self.reader(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy over the catalogue."""
        return functional.cross_entropy(self.reader.scores(self.states(interaction)[-1]), interaction[self.POS_ITEM_ID] - 1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items, 0 for padding. Shape (batch, item)."""
        return functional.pad(self.reader.scores(self.states(interaction)[-1]), (1, 0))


class SLMRec(E4SRec):
    """An E4SRec of fewer layers that learns from the run's E4SRec as well, by hidden states or, with loss=prunerec, by probabilities."""

    def __init__(self, config: RunConfig, dataset: NextItemDataset) -> None:
        super().__init__(config, dataset)
        teacher = config.helpers["E4SRec"]
        if self.layers > teacher.layers:
            raise ValueError(f"student_layers={self.layers} is more than the {teacher.layers} layers of its teacher; choose at most so many")
        self._teacher = (teacher.eval(),)  # in a tuple, so that it is no part of this model
        self._loss, self._restore = config["loss"], config.settings.restore
        blocks = min(BLOCKS, self.layers)
        self._own, self._guides = block_ends(self.layers, blocks), block_ends(teacher.layers, blocks)
        self._weights = {key: config[f"{key}_weight"] for key in ("cosine", "norm", "supervision")}
        hidden, width = self.reader.project_out.in_features, self.reader.project_out.out_features
        supervised = self._loss == "slmrec" and self._weights["supervision"] > 0
        self.heads = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in self._own[:-1] if supervised)
        self.note += f", taught by {teacher.layers}, loss {self._loss}"

    def _count_layers(self, config: RunConfig, sizes: Sizes) -> int:
        return config["student_layers"] or layers_within(sizes, config["budget"])

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """loss=slmrec: CE + the three block losses, weighed; loss=prunerec: METHOD 5's over the catalogue, as `restore` has it."""
        states, targets = self.states(interaction), interaction[self.POS_ITEM_ID] - 1
        scores = self.reader.scores(states[-1])
        (teacher,) = self._teacher
        with no_grad():
            guide = teacher.states(interaction)
            guide_scores = teacher.reader.scores(guide[-1])
        if self._loss == "prunerec":
            how = self._restore
            return restoration_loss(scores, guide_scores, targets, how.kd_weight, how.kd_loss, how.temperature, len(targets))[0]
        own, guides = ([part[end - 1] for end in ends] for part, ends in ((states, self._own), (guide, self._guides)))
        early = [self.reader.scores(part, head) for part, head in zip(own, self.heads, strict=False)]
        loss = functional.cross_entropy(scores, targets)
        loss = loss + self._weights["cosine"] * cosine_loss(own, guides) + self._weights["norm"] * norm_loss(own, guides)
        return loss + self._weights["supervision"] * supervision_loss(early, targets)


def _language_model(settings: Settings, dataset: NextItemDataset, items: int) -> Backbone:
    """What PruneRec would start from."""
    key, name = settings.start
    titles = dataset.catalogue(training_popularity(part_of(dataset), items)).texts
    return load_backbone(name, properties("backbone", "tiny"), titles, settings.seed, key, settings.revision, settings.attn_implementation)
