"""Sides depend on content alone: old pictures stay, copies stay together, and shares are met."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainables.config import SplitConfig, SplitName
from trainables.data import splits
from trainables.data.alike import alike_names
from trainables.data.folds import position_of
from trainables.data.packing import pack
from trainables.data.sources import open_source
from trainables.data.splits import assign_sides, check_sides
from trainables.data.table import ImageTable
from trainables.errors import InputError

IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
NO_SIDES: list[SplitName | None] = [None] * len(IDS)
SIDES = st.sampled_from([None, "train", "val", "test"])
PICTURES = st.lists(st.tuples(st.sampled_from(IDS[:40]), SIDES), min_size=1, max_size=60)


def assigned(pictures: list[tuple[str, SplitName | None]], config: SplitConfig) -> list[str]:
    return assign_sides([each for each, _ in pictures], [side for _, side in pictures], config).tolist()


def test_shares_are_met() -> None:
    counts = Counter(assign_sides(IDS, NO_SIDES, SplitConfig()).tolist())
    # Binomial: 4000 at 0.1 has a standard deviation of 19.
    assert abs(counts["val"] - 400) < 80
    assert abs(counts["test"] - 400) < 80
    assert counts["train"] + counts["val"] + counts["test"] == 4000


def test_positions_are_pinned_for_ever() -> None:
    """A change here moves everybody's pictures between train and test."""
    expected = [0.9275164811416685, 0.6470409677646516]
    assert [position_of(0, "a" * 64), position_of(7, "0" * 64)] == expected


def test_shares_need_not_add_up_to_one() -> None:
    doubled = SplitConfig(train=0.4, val=0.05, test=0.05)
    np.testing.assert_array_equal(
        assign_sides(IDS, NO_SIDES, doubled), assign_sides(IDS, NO_SIDES, SplitConfig(train=0.8, val=0.1, test=0.1))
    )


def test_another_share_of_val_leaves_test_alone() -> None:
    first = assign_sides(IDS, NO_SIDES, SplitConfig(train=0.8, val=0.1, test=0.1))
    second = assign_sides(IDS, NO_SIDES, SplitConfig(train=0.6, val=0.3, test=0.1))
    np.testing.assert_array_equal(first == "test", second == "test")


def test_seeds_deal_differently_and_repeatably() -> None:
    deals = [assign_sides(IDS, NO_SIDES, SplitConfig(seed=seed)) for seed in (0, 1, 0)]
    np.testing.assert_array_equal(deals[0], deals[2])
    assert 0.25 < (deals[0] != deals[1]).mean() < 0.45  # 1 - 0.8^2 - 0.1^2 - 0.1^2 = 0.34


def test_ids_as_bytes_or_text_are_the_same() -> None:
    np.testing.assert_array_equal(
        assign_sides(np.array(IDS, dtype="S64"), np.array(NO_SIDES, dtype=object), SplitConfig()),
        assign_sides(IDS, NO_SIDES, SplitConfig()),
    )


@given(st.permutations(IDS[:30]), st.sets(st.sampled_from(IDS[30:200])), st.integers(0, 5))
def test_adding_pictures_moves_no_old_one(old: list[str], new: set[str], seed: int) -> None:
    config = SplitConfig(seed=seed)
    before = dict(zip(old, assign_sides(old, [None] * len(old), config), strict=True))
    together = [*sorted(new), *old]
    after = dict(zip(together, assign_sides(together, [None] * len(together), config), strict=True))
    assert all(after[each] == side for each, side in before.items())


@given(PICTURES, st.booleans(), st.sampled_from([0.0, 0.5]))
def test_copies_never_straddle_and_order_does_not_matter(
    pictures: list[tuple[str, SplitName | None]], ignore: bool, test_share_of_val: float
) -> None:
    config = SplitConfig(source="ignore" if ignore else "auto", test_share_of_val=test_share_of_val)
    side_of: dict[str, str] = {}
    for (each, _), side in zip(pictures, assigned(pictures, config), strict=True):
        assert side_of.setdefault(each, side) == side
    backwards = assigned(pictures[::-1], config)
    assert backwards == [side_of[each] for each, _ in pictures[::-1]]


def test_in_which_pieces_keys_are_compared_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"{number // 5:064d}" for number in range(50)]  # five copies of each, on both sides of the pieces' ends
    held_out: list[SplitName | None] = ["test" if number % 10 == 4 else None for number in range(50)]
    whole = assign_sides(ids, held_out, SplitConfig(seed=3)).tolist()
    assert all(len(set(whole[start : start + 5])) == 1 for start in range(0, 50, 5))
    assert whole[:5] == ["test"] * 5
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(splits, "_COMPARED_AT_ONCE", size)
        assert assign_sides(ids, held_out, SplitConfig(seed=3)).tolist() == whole


@given(PICTURES)
def test_what_the_source_holds_out_is_never_trained_on(pictures: list[tuple[str, SplitName | None]]) -> None:
    held_out = {each for each, side in pictures if side in ("val", "test")}
    for (each, _), side in zip(pictures, assigned(pictures, SplitConfig()), strict=True):
        assert not (each in held_out and side == "train")


@given(
    st.lists(st.tuples(st.sampled_from(IDS[:30]), SIDES, st.sampled_from(["", "", "a", "b", "c"])), min_size=1),
    st.integers(0, 3),
)
def test_groups_never_straddle_nor_do_copies(pictures: list[tuple[str, SplitName | None, str]], seed: int) -> None:
    ids, sides, groups = (list(column) for column in zip(*pictures, strict=True))
    dealt = assign_sides(ids, sides, SplitConfig(seed=seed), groups)
    for keys in (ids, groups):
        found: dict[str, set[str]] = {}
        for key, side in zip(keys, dealt.tolist(), strict=True):
            found.setdefault(key, set()).add(side)
        assert all(len(sides) == 1 for key, sides in found.items() if key)


def test_a_groups_side_does_not_change_with_its_pictures() -> None:
    groups = [f"part {number // 5}" for number in range(len(IDS))]
    dealt = assign_sides(IDS, NO_SIDES, SplitConfig(), groups)
    fewer = assign_sides(IDS[::2], NO_SIDES[::2], SplitConfig(), groups[::2])
    np.testing.assert_array_equal(dealt[::2], fewer)
    # 800 groups at 0.1 have a standard deviation of 8.5 groups, of five pictures each.
    assert abs(int((dealt == "val").sum()) - 400) < 130


def test_pictures_without_a_group_are_dealt_as_ever() -> None:
    groups = ["", "part"] * (len(IDS) // 2)
    alone = assign_sides(IDS[::2], NO_SIDES[::2], SplitConfig())
    np.testing.assert_array_equal(assign_sides(IDS, NO_SIDES, SplitConfig(), groups)[::2], alone)


def test_a_table_finds_groups_in_names(folder: Callable[..., Path], tmp_path: Path) -> None:
    table = ImageTable.open(pack(open_source(str(folder(ants=12))), tmp_path / "tables", side_px=8).path)
    rows = np.arange(12)
    assert table.groups_of(rows, None) == [""] * 12
    assert table.groups_of(rows, r"/(\d\d)\d\.png")[8:] == ["00", "00", "01", "01"]
    assert table.groups_of(rows, "ants/.1")[8:] == ["", "", "ants/01", "ants/01"]
    assert table.groups_of(rows, "01")[9:] == ["", "01", "01"]


def test_sides_of_the_source_are_kept_and_test_is_dealt_out_of_val() -> None:
    given_sides: list[SplitName | None] = ["train"] * 3000 + ["val"] * 1000
    dealt = assign_sides(IDS, given_sides, SplitConfig())
    assert set(dealt[:3000]) == {"train"}
    assert Counter(dealt[3000:].tolist()).keys() == {"val", "test"}
    assert abs((dealt[3000:] == "test").sum() - 500) < 64  # four standard deviations
    whole = assign_sides(IDS, given_sides, SplitConfig(test_share_of_val=0))
    assert set(whole[3000:]) == {"val"}
    all_given: list[SplitName | None] = ["train"] * 2000 + ["val"] * 1000 + ["test"] * 1000
    assert assign_sides(IDS, all_given, SplitConfig()).tolist() == all_given


def test_a_missing_val_side_is_dealt_out_of_train() -> None:
    given_sides: list[SplitName | None] = ["train"] * 3000 + ["test"] * 1000
    dealt = assign_sides(IDS, given_sides, SplitConfig())
    assert set(dealt[3000:]) == {"test"}
    counts = Counter(dealt[:3000].tolist())
    assert counts.keys() == {"train", "val"}
    assert abs(counts["val"] - 3000 / 9) < 70  # 0.1 of 0.9


def test_ignoring_the_source_deals_by_the_shares() -> None:
    given_sides: list[SplitName | None] = ["train"] * 2000 + ["test"] * 2000
    np.testing.assert_array_equal(
        assign_sides(IDS, given_sides, SplitConfig(source="ignore")), assign_sides(IDS, NO_SIDES, SplitConfig())
    )


def test_shares_of_zero() -> None:
    assert set(assign_sides(IDS, NO_SIDES, SplitConfig(test=0))) == {"train", "val"}
    assert set(assign_sides(IDS, NO_SIDES, SplitConfig(train=0, val=0, test=1))) == {"test"}
    with pytest.raises(InputError, match="are all 0"):
        assign_sides(IDS, NO_SIDES, SplitConfig(train=0, val=0, test=0))


def test_adding_pictures_to_a_folder_moves_none(folder: Callable[..., Path], tmp_path: Path) -> None:
    """The same through the whole way: folder, packing, table, sides."""
    root = folder(ants=40, bees=40)

    def sides() -> dict[str, str]:
        table = ImageTable.open(pack(open_source(str(root)), tmp_path / "t", side_px=8).path)
        return dict(zip(table.names, assign_sides(table.ids, table.sides, SplitConfig()).tolist(), strict=True))

    before = sides()
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "ants" / f"!{number:02d}.png")  # sorts before the old
    after = sides()
    assert len(after) == 110
    assert {name: after[name] for name in before} == before


def check(sides: list[str], labels: list[int], names: tuple[str, ...] = ("ants", "bees"), **split: float) -> None:
    check_sides(sides, labels, names, SplitConfig(**split))


GOOD_SIDES = ["train", "val", "test"] * 2
GOOD_LABELS = [0, 0, 0, 1, 1, 1]


def test_good_sides_pass() -> None:
    with pytest.raises(InputError):
        check(GOOD_SIDES[:5], GOOD_LABELS[:5])
    check(GOOD_SIDES, GOOD_LABELS)


@pytest.mark.parametrize(
    ("sides", "labels", "names", "message"),
    [
        (["train"] * 3, [0] * 3, ("ants",), r"1 class \(ants\) to tell apart: give at least two"),
        ([], [], (), r"0 class \(none\)"),
        (GOOD_SIDES, [0, 0, 0, 0, 1, 1], ("ants", "bees"), "class 'bees' has 2 usable pictures, fewer than 3"),
        (GOOD_SIDES, GOOD_LABELS, ("ants", "bees", "wasps"), "class 'wasps' has 0 usable pictures"),
        (["train", "train", "test"] * 2, GOOD_LABELS, ("ants", "bees"), r"the val side: give data.split.val a larger"),
        (["train", "train", "val"] * 2, GOOD_LABELS, ("ants", "bees"), r"the test side: give data.split.test a larger"),
        (["val", "val", "test"] * 2, GOOD_LABELS, ("ants", "bees"), r"the train side: give data.split.train a"),
        (["train", "val", "test", "test", "val", "val"], GOOD_LABELS, ("ants", "bees"), "class 'bees' has no picture"),
    ],
)
def test_unusable_sides_are_refused(sides: list[str], labels: list[int], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(sides, labels, names)
    assert "\n" not in str(caught.value)


def test_an_empty_test_side_is_fine_where_none_was_asked_for() -> None:
    without_test = ["train", "train", "val"] * 2
    check(without_test, GOOD_LABELS, test=0)
    given_sides: list[SplitName | None] = ["train", "train", "val"] * 2
    check_sides(without_test, GOOD_LABELS, ("ants", "bees"), SplitConfig(test_share_of_val=0), given=given_sides)
    with pytest.raises(InputError, match=r"give data\.split\.test_share_of_val a larger share"):
        check_sides(without_test, GOOD_LABELS, ("ants", "bees"), SplitConfig(), given=given_sides)


def test_a_class_that_a_side_of_the_source_lacks_is_refused_unless_it_is_a_sample() -> None:
    sides: list[SplitName | None] = ["train", "train", "val", "train", "train", "train"]
    for assigned in (sides, ["train", "test", "val", "train", "test", "val"]):
        with pytest.raises(InputError, match="class 'bees' has no picture on the val side of the source"):
            check_sides(assigned, GOOD_LABELS, ("ants", "bees"), SplitConfig(test_share_of_val=0), given=sides)
    check_sides(sides, GOOD_LABELS, ("ants", "bees"), SplitConfig(test_share_of_val=0), given=sides, is_sample=True)
    dealt = ["train", "test", "val", "train", "test", "val"]
    check_sides(dealt, GOOD_LABELS, ("ants", "bees"), SplitConfig(source="ignore"), given=sides)


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("Bolt", "bolt"), ("Bolt", "bolt")),
        (("nut", "big nut", "bignut "), ("big nut", "bignut ")),
        (("Gr\u00f6\u00dfe", "GRO\u0308SSE"), ("GRO\u0308SSE", "Gr\u00f6\u00dfe")),
        (("a", "A", "bolt", "bolts"), None),
        (("1", "01", "1.0"), None),
    ],
)
def test_names_that_differ_by_case_or_space(names: tuple[str, ...], alike: tuple[str, str] | None) -> None:
    assert alike_names(names) == alike
