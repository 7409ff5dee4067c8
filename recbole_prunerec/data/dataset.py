"""RecBole's sequential dataset under the paper's protocol: exact time order, floor cuts, and no item without a title (METHOD 1)."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.config import Config
from recbole.data.dataset import SequentialDataset

from recbole_prunerec.data.samples import Part, Samples
from recbole_prunerec.errors import UserError, nearest
from recbole_prunerec.text.catalogue import Catalogue, tidy

FLOAT32_INTEGERS = 2**24  # RecBole keeps time in float32, which tells integers apart up to here


def read_titles(path: Path, item_field: str, title_field: str, separator: str = "\t") -> dict[str, str]:
    """Titles by item token, from a RecBole `.item` file, with white space collapsed; blank titles are left out.

    RecBole's own loader crashes on blank text under pandas 3, and splits titles into word lists.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE)
        fields = [column.split(":")[0] for column in next(lines, [])]
        for field in (item_field, title_field):
            if field not in fields:
                raise UserError(
                    f"{path} has no column {field!r}; it has {', '.join(fields)}{nearest(field, fields)} (the keys are ITEM_ID_FIELD and title_field)"
                )
        item, title = fields.index(item_field), fields.index(title_field)
        rows = [row for row in lines if len(row) > max(item, title)]
    return {row[item]: tidy(row[title]) for row in rows if tidy(row[title])}


class NextItemDataset(SequentialDataset):
    """One sample a position; items without a title go before the k-core, time is replaced by its rank before RecBole rounds it to float32."""

    inter_feat: pd.DataFrame  # until build(); RecBole then puts its Interaction there

    def __init__(self, config: Config) -> None:
        self.titles: dict[str, str] = {}
        super().__init__(config)

    def _load_data(self, token: str, dataset_path: str) -> None:
        super()._load_data(token, dataset_path)
        path = Path(dataset_path) / f"{token}.item"
        if path.exists():
            self.titles = read_titles(path, self.iid_field, self.config["title_field"], self.config["field_separator"])
        if self.benchmark_filename_list is not None:
            return
        if self.time_field not in self.inter_feat:
            raise UserError(f"{token}.inter has no column {self.time_field!r} to order interactions by; name it with TIME_FIELD")
        if self.config["split"] == "global_time" and time_is_position(self.inter_feat[self.uid_field], self.inter_feat[self.time_field]):
            raise UserError(
                f"the time in {token}.inter is only the position in each user's history, which cannot order samples of different users; "
                "choose split=leave_one_out"
            )
        if self.titles:
            self.inter_feat = self.inter_feat[self.inter_feat[self.iid_field].isin(self.titles.keys())].reset_index(drop=True)
        self.inter_feat[self.time_field] = self.inter_feat[self.time_field].rank(method="dense")
        if self.inter_feat[self.time_field].max() >= FLOAT32_INTEGERS:
            raise UserError(f"{token}.inter has more than {FLOAT32_INTEGERS} distinct times, which RecBole cannot keep apart; round them to days")

    def _calcu_split_ids(self, tot: int, ratios: list[float]) -> list[int]:
        """Cuts at floor(total * cumulative share), exact in rational numbers."""
        shares = np.cumsum([Fraction(ratio).limit_denominator(10**6) for ratio in ratios])
        return [int(tot * share / shares[-1]) for share in shares[:-1]]

    def catalogue(self, popularity: np.ndarray) -> Catalogue:
        """The items that are left, with their titles."""
        tokens = self.field2id_token[self.iid_field].tolist()
        if not self.titles:
            raise UserError(f"a language model needs titles, and {self.dataset_path}/{self.dataset_name}.item does not exist or has none")
        return Catalogue.build(tokens, ["", *(self.titles.get(token, "") for token in tokens[1:])], popularity)

    def statistics(self, samples: Samples) -> dict[str, int | float | str]:
        """What the data are after filtering, for reports."""
        interactions = len(samples.train) + len(samples.valid) + len(samples.test)
        users, items = self.user_num - 1, self.item_num - 1
        return {
            "name": self.dataset_name,
            "users": users,
            "items": items,
            "interactions": interactions + (users if self.benchmark_filename_list is None else 0),
            "train": len(samples.train),
            "valid": len(samples.valid),
            "test": len(samples.test),
        }


def time_is_position(users: pd.Series, times: pd.Series) -> bool:
    """Whether every user's times, sorted, are 0, 1, 2, ... (or 1, 2, 3, ...): an order, not a clock."""
    frame = pd.DataFrame({"user": users.to_numpy(), "time": times.to_numpy()}).sort_values(["user", "time"], kind="stable")
    start = frame["time"].min()
    return start in (0, 1) and bool((frame["time"] == frame.groupby("user").cumcount() + start).all())


def part_of(dataset: SequentialDataset) -> Part:
    """The samples of one built part, as plain arrays in RecBole's order."""
    inter = dataset.inter_feat
    return Part(
        users=inter[dataset.uid_field].numpy(),
        histories=inter[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy(),
        lengths=inter[dataset.item_list_length_field].numpy(),
        targets=inter[dataset.iid_field].numpy(),
    )
