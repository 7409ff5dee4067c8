"""RecBole's dataset with our overrides against preprocessing in plain Python."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_prunerec.config import RunConfig
from recbole_prunerec.data.checks import time_is_position
from recbole_prunerec.data.dataset import NextItemDataset, part_of
from recbole_prunerec.errors import UserError
from recbole_prunerec.model.popularity import Popularity
from recbole_prunerec.settings import Settings

CORE = {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,inf)"}


def build(tmp_path: Path, **settings) -> tuple[NextItemDataset, list[NextItemDataset]]:
    recbole = settings.pop("recbole", CORE)
    dataset = NextItemDataset(RunConfig(Settings(recbole=recbole, **settings), Popularity, tmp_path / "run", tmp_path / "cache"))
    return dataset, dataset.build()


def rows_of(dataset: NextItemDataset, part: NextItemDataset) -> list[tuple[str, list[str], str]]:
    arrays = part_of(part)
    users, items = dataset.field2id_token[dataset.uid_field], dataset.field2id_token[dataset.iid_field]
    return [(users[arrays.users[row]], [items[item] for item in arrays.history(row)], items[arrays.targets[row]]) for row in range(len(arrays))]


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def plain_samples(interactions: list[tuple[str, str, float]], core: int, longest: int = 10):
    """5-core, one sample a position, in user order; `(target time, user, history, target)`."""
    while True:
        users, items = Counter(row[0] for row in interactions), Counter(row[1] for row in interactions)
        kept = [row for row in interactions if users[row[0]] >= core and items[row[1]] >= core]
        if len(kept) == len(interactions):
            break
        interactions = kept
    by_user: dict[str, list[tuple[float, str]]] = {}
    for user, item, time in interactions:
        by_user.setdefault(user, []).append((time, item))
    samples = []
    for user, rows in by_user.items():
        rows = sorted(rows, key=lambda row: row[0])  # stable: ties keep the file's order
        for place in range(1, len(rows)):
            samples.append((rows[place][0], user, [item for _, item in rows[max(0, place - longest) : place]], rows[place][1]))
    return samples


def plain_global_time(samples):
    ordered = sorted(samples, key=lambda sample: sample[0])  # stable: user's first appearance, then position
    total = len(ordered)
    first, second = total * 8 // 10, total * 9 // 10
    return [[sample[1:] for sample in part] for part in (ordered[:first], ordered[first:second], ordered[second:])]


def write_dataset(folder: Path, interactions, titles: dict[str, str]) -> None:
    folder = folder / "toy"
    folder.mkdir(parents=True)
    lines = [f"{user}\t{item}\t{time}" for user, item, time in interactions]
    (folder / "toy.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")
    (folder / "toy.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{item}\t{title}\n" for item, title in titles.items()))


def random_interactions(seed: int, start: int = 1_400_000_000):
    """Times a second apart, which float32 cannot tell apart, with many ties."""
    generator = np.random.default_rng(seed)
    return [(f"u{generator.integers(12)}", f"i{generator.integers(15)}", float(start + generator.integers(60))) for _ in range(260)]


def test_ml_100k_equals_plain_preprocessing(tmp_path):
    dataset, parts = build(tmp_path, title_field="movie_title")
    folder = Path(dataset.dataset_path)
    titles = {row[0] for row in read(folder / "ml-100k.item") if row[1].strip()}
    interactions = [(row[0], row[1], float(row[3])) for row in read(folder / "ml-100k.inter") if row[1] in titles]
    expected = plain_global_time(plain_samples(interactions, 5))
    assert [len(part) for part in expected] == [78675, 9834, 9835]
    for part, rows in zip(parts, expected, strict=True):
        assert rows_of(dataset, part) == [(user, history, target) for user, history, target in rows]


@pytest.mark.parametrize("seed", range(4))
def test_exact_time_order_with_ties_and_blank_titles(tmp_path, seed):
    interactions = random_interactions(seed)
    titles = {f"i{item}": f"Title {item}" for item in range(15)} | {"i3": " ", "i7": ""}
    write_dataset(tmp_path / "data", interactions, titles)
    dataset, parts = build(tmp_path, dataset="toy", data_path=str(tmp_path / "data"))
    kept = [row for row in interactions if row[1] not in ("i3", "i7")]
    expected = plain_global_time(plain_samples(kept, 5))
    assert [rows_of(dataset, part) for part in parts] == expected


def test_leave_one_out_gives_each_users_last_two_samples(tmp_path):
    interactions = random_interactions(9)
    write_dataset(tmp_path / "data", interactions, {f"i{item}": f"Title {item}" for item in range(15)})
    dataset, parts = build(tmp_path, dataset="toy", data_path=str(tmp_path / "data"), split="leave_one_out")
    by_user: dict[str, list] = {}
    for _, user, history, target in plain_samples(interactions, 5):
        by_user.setdefault(user, []).append((user, history, target))
    assert sorted(rows_of(dataset, parts[2])) == sorted(rows[-1] for rows in by_user.values())
    assert sorted(rows_of(dataset, parts[1])) == sorted(rows[-2] for rows in by_user.values())
    assert sorted(rows_of(dataset, parts[0])) == sorted(row for rows in by_user.values() for row in rows[:-2])


def test_time_that_is_a_position_is_refused_for_a_split_by_time(tmp_path):
    interactions = [(f"u{user}", f"i{(user + place) % 6}", float(place)) for user in range(8) for place in range(6)]
    write_dataset(tmp_path / "data", interactions, {f"i{item}": f"Title {item}" for item in range(6)})
    with pytest.raises(UserError, match="choose split=leave_one_out"):
        build(tmp_path, dataset="toy", data_path=str(tmp_path / "data"))
    assert build(tmp_path, dataset="toy", data_path=str(tmp_path / "data"), split="leave_one_out")[0].item_num == 7


def test_time_is_position_only_where_every_user_counts_from_the_start():
    users = pd.Series(["a", "b", "a", "a", "b"])
    assert time_is_position(users, pd.Series([1.0, 0.0, 0.0, 2.0, 1.0]))
    assert time_is_position(users, pd.Series([2.0, 1.0, 1.0, 3.0, 2.0]))
    assert not time_is_position(users, pd.Series([1.0, 0.0, 0.0, 2.0, 5.0]))
    assert not time_is_position(users, pd.Series([9.0, 8.0, 8.0, 10.0, 9.0]))


@pytest.mark.parametrize("total", [0, 1, 9, 10, 11, 98344, 252018])
def test_cuts_are_floors(tmp_path, total):
    cuts = NextItemDataset._calcu_split_ids(None, total, [0.8, 0.1, 0.1])
    assert cuts == [total * 8 // 10, total * 9 // 10]
