import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mask2former.data.datasets.categories import ade20k_instance_ids, load_categories

COUNTS = {
    "ade20k_150": (150, 100),
    "ade20k_instance_100": (100, 100),
    "ade20k_full_847": (847, 0),
    "coco_stuff_171": (171, 80),
    "mapillary_65": (65, 37),
    "ytvis_2019": (40, 40),
    "ytvis_2021": (40, 40),
    "digits": (13, 10),
}


@pytest.mark.parametrize(("name", "counts"), COUNTS.items(), ids=COUNTS)
def test_every_table_has_its_published_number_of_classes_and_of_things(name, counts) -> None:
    categories = load_categories(name)
    assert (len(categories), sum(category.is_thing for category in categories)) == counts


@pytest.mark.parametrize("name", COUNTS)
def test_ids_and_names_are_unique_and_ids_ascend(name) -> None:
    categories = load_categories(name)
    identifiers = [category.id for category in categories]
    assert identifiers == sorted(set(identifiers))
    # ADE20K's full list tells apart classes that share a name, by their number in its index.
    assert len({(category.name, category.key) for category in categories}) == len(categories)


@pytest.mark.parametrize("name", ["ade20k_full_847", "mapillary_65"])
def test_keys_of_a_table_are_unique(name) -> None:
    keys = {category.key for category in load_categories(name)}
    assert len(keys) == COUNTS[name][0] and None not in keys


def test_colors_are_bytes_and_a_missing_one_is_said_with_the_name_of_the_class() -> None:
    tables = [load_categories(name) for name in COUNTS]
    colors = [category.color for table in tables for category in table if category.color is not None]
    assert len(colors) == 150 + 80 + 65 + 40 + 40 + 13
    assert all(len(color) == 3 and 0 <= min(color) <= max(color) <= 255 for color in colors)
    first = load_categories("ade20k_full_847")[0]
    assert first.to_json() == {"id": 0, "name": "wall", "isthing": 0}
    with pytest.raises(ValueError, match="'wall' has no color"):
        _ = first.rgb


def test_the_instances_of_ade20k_are_the_things_of_its_150_classes() -> None:
    things = [category.id for category in load_categories("ade20k_150") if category.is_thing]
    assert [category.id for category in load_categories("ade20k_instance_100")] == things
    rows = ade20k_instance_ids()
    assert len(rows) == 103
    assert {instance for instance, _, _ in rows} == set(range(1, 101))
    # Both numberings follow the same order, so a class of one is a class of the other.
    assert sorted({(instance, scene - 1) for instance, scene, _ in rows}) == list(
        zip(range(1, 101), things, strict=True)
    )


def test_coco_stuff_begins_with_the_things_of_coco_and_goes_on_with_ids_from_92() -> None:
    categories = load_categories("coco_stuff_171")
    coco_things = [(c["id"], c["name"]) for c in COCO_CATEGORIES if c["isthing"]]
    assert [(category.id, category.name) for category in categories[:80]] == coco_things
    assert [category.id for category in categories[80:]] == list(range(92, 183))
