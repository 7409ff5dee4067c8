"""What training is compared with: transformers' Trainer as people write it, with every logit of every position and a teacher that runs along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from recbole_prunerec.ranking.trie import Trie
from recbole_prunerec.text.packing import collate
from recbole_prunerec.text.prompts import Example


class Listed(torch.utils.data.Dataset):
    """Rows in the order in which they are to be learned."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, row: int) -> Example:
        return self._examples[row]


class PlainTrainer(Trainer):
    """kd_weight * KL(teacher || student) + (1 - kd_weight) * cross-entropy over the labelled tokens, or cross-entropy alone without a teacher.

    With `trie`, logits of tokens that go on with no title are masked: the catalogue's softmax.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        examples: Sequence[Example],
        pad_id: int,
        trie: Trie | None,
        teacher: PreTrainedModel | None,
        kd_weight: float,
        teacher_bfloat16: bool,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=Listed(examples), data_collator=lambda rows: collate(rows, pad_id))
        self._tree = None if trie is None else _nested(trie)
        self._teacher, self._kd_weight, self._teacher_bfloat16 = teacher, kd_weight, teacher_bfloat16

    def get_train_dataloader(self) -> DataLoader:
        """The rows in the order given."""
        return DataLoader(self.train_dataset, batch_size=self.args.per_device_train_batch_size, collate_fn=self.data_collator)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The mean over the batch's labelled tokens."""
        labels, asked = inputs["labels"][:, 1:], {key: inputs[key] for key in ("input_ids", "attention_mask")}
        chosen = labels != -100
        student = model(**asked, use_cache=False).logits[:, :-1][chosen].float()
        closed = None if self._tree is None else _closed(self._tree, inputs["labels"].tolist(), student.shape[1])
        if closed is not None:
            student = student.masked_fill(closed, -torch.inf)
        targets = labels[chosen]
        loss = cross_entropy(student, targets)
        if self._teacher is not None:
            with torch.no_grad(), torch.autocast(student.device.type, torch.bfloat16, enabled=self._teacher_bfloat16):
                guide = self._teacher(**asked, use_cache=False).logits[:, :-1][chosen].float()
            if closed is not None:
                guide = guide.masked_fill(closed, -torch.inf)
            least = torch.finfo(torch.float32).min
            log_p, log_q = (torch.log_softmax(logits, -1).clamp_min(least) for logits in (guide, student))
            kd = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
            loss = self._kd_weight * kd + (1 - self._kd_weight) * loss
        return (loss, None) if return_outputs else loss


def _nested(trie: Trie, node: int = 0) -> dict[int, Any]:
    """The tree as dictionaries: the tokens that go on, and what follows each."""
    tokens, nodes = trie.children(node)
    return {token: _nested(trie, child) for token, child in zip(tokens.tolist(), nodes.tolist(), strict=True)}


def _closed(tree: dict[int, Any], labels: list[list[int]], vocab: int) -> Tensor:
    """For each labelled token, in order, which tokens could not stand there. Shape (answer, vocab)."""
    rows, columns, count = [], [], 0
    for row in labels:
        node = tree
        for token in row[1:]:
            if token < 0:
                node = tree
                continue
            rows += [count] * len(node)
            columns += node
            node, count = node[token], count + 1
    closed = torch.ones(count, vocab, dtype=torch.bool)
    closed[rows, columns] = False
    return closed
