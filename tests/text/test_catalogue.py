import numpy as np
import pytest

from recbole_prunerec.errors import UserError
from recbole_prunerec.text.catalogue import Catalogue, tidy

CATALOGUE = Catalogue.build(["[PAD]", "a", "b", "c", "d", "e"], ["", "Heat", "Casino", "Heat", "Jade", " Heat "], [0, 2, 5, 9, 5, 2])


def test_tidy_collapses_white_space():
    assert tidy("  The\tBig \n Heat ") == "The Big Heat"


def test_items_that_share_a_title_are_ordered_by_popularity_then_id():
    assert CATALOGUE.distinct == ("Heat", "Casino", "Jade")
    assert CATALOGUE.items_of == ((3, 1, 5), (2,), (4,))
    assert CATALOGUE.title_of.tolist() == [-1, 0, 1, 0, 2, 0]


def test_order_expands_ranked_titles_and_appends_the_rest_by_popularity():
    assert CATALOGUE.order(np.array([2, -1])).tolist() == [4, 3, 2, 1, 5]
    assert CATALOGUE.order(np.array([1, 0])).tolist() == [2, 3, 1, 5, 4]
    assert CATALOGUE.order(np.array([], dtype=int)).tolist() == [3, 2, 4, 1, 5]


def test_an_item_without_a_title_is_refused():
    with pytest.raises(UserError, match="1 items have no title, for example b"):
        Catalogue.build(["[PAD]", "a", "b"], ["", "Heat", "  "], [0, 1, 1])


def test_saved_and_loaded_is_the_same(tmp_path):
    CATALOGUE.save(tmp_path)
    assert Catalogue.load(tmp_path) == CATALOGUE


def test_a_damaged_file_is_refused_by_name(tmp_path):
    CATALOGUE.save(tmp_path)
    path = tmp_path / "catalogue.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"catalogue\.json"):
        Catalogue.load(tmp_path)
