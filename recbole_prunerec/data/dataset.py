"""RecBole's sequential dataset under the paper's protocol: exact time order, floor cuts, and no item without a title (METHOD 1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.reading import read_data
from recbole_prunerec.data.samples import Part, Samples
from recbole_prunerec.data.tables import Column
from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import Catalogue

FLOAT32_INTEGERS = 2**24  # RecBole keeps time in float32, which tells integers apart up to here
NEEDED = {
    "global_time": "split=global_time cuts 8:1:1 and needs 6 samples or more, one for each interaction after a user's first",
    "leave_one_out": "split=leave_one_out needs a user with 4 interactions or more",
}

logger = logging.getLogger(__name__)


class NextItemDataset(SequentialDataset):
    """One sample a position; items without a title go before the k-core, time is replaced by its rank before RecBole rounds it to float32.

    The files are read here, not by RecBole, which stops at the first mistake with a traceback, or takes it for data: a time that is no number, a row
    of another length, a user called NA. Raises one `UserError` with every problem of the files.
    """

    inter_feat: pd.DataFrame  # until build(); RecBole then puts its Interaction there
    _histories: pd.Series  # lists of items, where the files are split already

    def __init__(self, config: RunConfig) -> None:
        self.settings = config.settings
        super().__init__(config)

    def _load_data(self, token: str, dataset_path: str) -> None:
        folder, parts = Path(dataset_path), self.benchmark_filename_list
        user, item = Column(self.uid_field, "token", "USER_ID_FIELD"), Column(self.iid_field, "token", "ITEM_ID_FIELD")
        columns, title = {"user": user, "item": item}, Column(self.settings.title_field, "", "title_field")
        self.set_field_property(user.name, FeatureType.TOKEN, FeatureSource.USER_ID, 1)
        self.set_field_property(item.name, FeatureType.TOKEN, FeatureSource.ITEM_ID, 1)
        if parts is None:
            columns["time"] = Column(self.time_field, "float", "TIME_FIELD")
            self.set_field_property(self.time_field, FeatureType.FLOAT, FeatureSource.INTERACTION, 1)
        else:
            columns["history"] = Column(self.iid_field + self.config["LIST_SUFFIX"], "token_seq", "LIST_SUFFIX")
        paths = [folder / f"{name}.inter" for name in ([token] if parts is None else [f"{token}.{part}" for part in parts])]
        data = read_data(paths, columns, folder / f"{token}.item", {"item": item, "title": title}, self.settings, self.config["field_separator"])
        self.titles, self.file_size_list = data.titles, data.sizes
        inter = data.inter.reset_index(drop=True)
        if parts is not None:
            self._histories = inter.pop("history")
        self.inter_feat, self.user_feat, self.item_feat = inter.rename(columns={role: column.name for role, column in columns.items()}), None, None

    def _get_remap_list(self, field_list: Iterable[str]) -> list[tuple[pd.DataFrame, str, FeatureType]]:
        return super()._get_remap_list([field for field in field_list if field in self.inter_feat])  # alias_of_item_id names the histories

    def _benchmark_presets(self) -> None:
        """The histories of files that are split already, as ids of the same items: RecBole's way to them does not work with pandas 3."""
        ids, field = self.field2token_id[self.iid_field], self.iid_field + self.config["LIST_SUFFIX"]
        for token in chain(*self._histories):
            ids.setdefault(token, len(ids))
        self.field2id_token[self.iid_field] = np.array(list(ids))
        padding = [0] * self.max_item_list_len
        self.inter_feat[field] = [[*map(ids.get, history), *padding[len(history) :]] for history in self._histories]
        self.inter_feat[self.item_list_length_field] = self._histories.map(len)
        self.set_field_property(field, FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, self.max_item_list_len)
        self.set_field_property(self.item_list_length_field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)

    def _data_filtering(self) -> None:
        super()._data_filtering()
        times = self.inter_feat[self.time_field].rank(method="dense")
        if times.max() >= FLOAT32_INTEGERS:
            raise UserError(
                f"{self.dataset_name} has {times.max():.0f} distinct times, of which RecBole keeps {FLOAT32_INTEGERS} apart; round them to days"
            )
        self.inter_feat[self.time_field] = times

    def _filter_by_inter_num(self) -> None:
        before = self._counts()
        super()._filter_by_inter_num()
        keys = " and ".join(f"{key}={self.config[key]}" for key in ("user_inter_num_interval", "item_inter_num_interval"))
        if self.inter_feat.empty:
            raise UserError(f"{self.dataset_name} has {before}, of which {keys} leave none; choose lower ones, such as [2,inf), or add interactions")
        logger.info("%s has %s; %s leave %s", self.dataset_name, before, keys, self._counts())

    def _counts(self) -> str:
        users, items = (self.inter_feat[field].nunique() for field in (self.uid_field, self.iid_field))
        return f"{users} users, {items} items and {len(self.inter_feat)} interactions"

    def build(self) -> list[NextItemDataset]:
        """Training, validation and test samples. Raises `UserError` where one of them has none."""
        parts = super().build()
        sizes = [len(part) for part in parts]
        if not all(sizes):
            counts = ", ".join(f"{size} for {part}" for size, part in zip(sizes, ("training", "validation", "testing"), strict=True))
            raise UserError(f"{self.dataset_name} gives {counts}, and each needs one: {NEEDED[self.settings.split]}; add interactions")
        return parts

    def _calcu_split_ids(self, tot: int, ratios: list[float]) -> list[int]:
        """Cuts at floor(total * cumulative share), exact in rational numbers."""
        shares = np.cumsum([Fraction(ratio).limit_denominator(10**6) for ratio in ratios])
        return [int(tot * share / shares[-1]) for share in shares[:-1]]

    def catalogue(self, popularity: np.ndarray) -> Catalogue:
        """The items that are left, with their titles."""
        tokens = self.field2id_token[self.iid_field].tolist()
        catalogue = Catalogue.build(tokens, ["", *(self.titles.get(token, "") for token in tokens[1:])], popularity)
        return catalogue.shortened() if self.settings.short_titles else catalogue

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


def part_of(dataset: SequentialDataset) -> Part:
    """The samples of one built part, as plain arrays in RecBole's order."""
    inter = dataset.inter_feat
    return Part(
        users=inter[dataset.uid_field].numpy(),
        histories=inter[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy(),
        lengths=inter[dataset.item_list_length_field].numpy(),
        targets=inter[dataset.iid_field].numpy(),
    )
