import json

import numpy as np
import pytest

from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import Catalogue, tidy

CATALOGUE = Catalogue.build(["[PAD]", "a", "b", "c", "d", "e"], ["", "Heat", "Casino", "Heat", "Jade", " Heat "], [0, 2, 5, 9, 5, 2])


def test_tidy_collapses_white_space():
    assert tidy("  The\tBig \n Heat ") == "The Big Heat"


def test_items_that_share_a_title_are_ordered_by_popularity_then_id():
    assert CATALOGUE.distinct == ("Heat", "Casino", "Jade")
    assert [CATALOGUE.items_of(title) for title in range(3)] == [[3, 1, 5], [2], [4]]
    assert [part.tolist() for part in CATALOGUE.by_title] == [[3, 1, 5, 2, 4], [0, 3, 4, 5]]
    assert CATALOGUE.title_of.tolist() == [-1, 0, 1, 0, 2, 0] and CATALOGUE.position == {"Heat": 0, "Casino": 1, "Jade": 2}


def test_found_titles_come_first_whatever_bounds_the_others():
    titles, scores = np.array([[2, -1], [1, 0], [-1, -1]]), np.array([[-9, -np.inf], [-1, -2], [-np.inf, -np.inf]], np.float32)
    bounds = np.array([[0, 0, -9], [-2, -1, 0], [-3, -3, -np.inf]], np.float32)  # 0 is the highest there is
    assert CATALOGUE.order(titles, scores, bounds).tolist() == [[4, 3, 2, 1, 5], [2, 3, 1, 5, 4], [3, 2, 1, 5, 4]]


def test_any_order_is_that_of_sorting_item_by_item():
    """By score, then popularity, then id; few values, so that all of them tie."""
    draw = np.random.default_rng(0)
    catalogue = Catalogue.build(range(41), ["", *(f"t{draw.integers(15)}" for _ in range(40))], [0, *draw.integers(3, size=40)])
    count, users, k = len(catalogue.distinct), 30, 6
    bounds = -draw.integers(0, 4, (users, count)).astype(np.float32)
    titles = np.argsort(draw.random((users, count)), 1)[:, :k]
    scores = -np.sort(draw.integers(0, 4, (users, k)), 1).astype(np.float32)
    for row in range(users):
        titles[row, draw.integers(k + 1) :] = -1
    for row, items in enumerate(catalogue.order(titles, scores, bounds).tolist()):
        found = {title: score for title, score in zip(titles[row].tolist(), scores[row].tolist(), strict=True) if title >= 0}

        def place(item, found=found, row=row):
            title = catalogue.title_of[item]
            return (title not in found, -found.get(title, bounds[row, title]), -catalogue.popularity[item], item)

        assert items == sorted(range(1, 41), key=place)


def test_an_item_without_a_title_is_refused():
    with pytest.raises(UserError, match="1 items have no title, for example b"):
        Catalogue.build(["[PAD]", "a", "b"], ["", "Heat", "  "], [0, 1, 1])
    with pytest.raises(UserError, match="the catalogue has no item; give at least one"):
        Catalogue.build(["[PAD]"], [""], [0])


def test_saved_and_loaded_is_the_same(tmp_path):
    CATALOGUE.save(tmp_path)
    assert Catalogue.load(tmp_path) == CATALOGUE


@pytest.mark.parametrize("change", [{"titles": ["", "Heat"]}, {"popularity": [0] * 9}, {"tokens": [""], "titles": [""], "popularity": [0]}])
def test_a_file_that_contradicts_itself_or_has_no_item_is_refused_by_name(tmp_path, change):
    CATALOGUE.save(tmp_path)
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"catalogue\.json is damaged.* must be those of the same items, at least one"):
        Catalogue.load(tmp_path)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    CATALOGUE.save(tmp_path)
    path = tmp_path / "catalogue.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"catalogue\.json"):
        Catalogue.load(tmp_path)
