"""Which classes labels of a data set may have, as its metadata say."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.data import Metadata

from mask2former.data.check.problems import Form

__all__ = ["KnownClasses"]

_DEFAULT_IGNORE_LABEL = 255  # of Detectron2, where metadata name none


@dataclass(frozen=True)
class KnownClasses:
    """The classes of each form of labels; None where the metadata do not tell.

    Attributes:
        panoptic, instance, semantic: contiguous ids and names.
        file_ids: ids that annotation files may use.
        ignore_label: value of semantic labels that stands for "no class".
    """

    panoptic: dict[int, str] | None
    instance: dict[int, str] | None
    semantic: dict[int, str] | None
    file_ids: frozenset[int] | None
    ignore_label: int

    @classmethod
    def of(cls, metadata: Metadata) -> KnownClasses:
        things = metadata.get("thing_dataset_id_to_contiguous_id")
        stuff = metadata.get("stuff_dataset_id_to_contiguous_id")
        thing_names = list(metadata.get("thing_classes") or ())
        stuff_names = list(metadata.get("stuff_classes") or ())
        # Panoptic data sets list all classes as stuff, and only things, whose ids may have gaps, as things.
        all_names = stuff_names if len(stuff_names) >= len(thing_names) else thing_names
        mapped = sorted({*(things or {}).values(), *(stuff or {}).values()})
        thing_ids = sorted(things.values()) if things else list(range(len(thing_names)))
        has_own_names = thing_ids == list(range(len(thing_names)))
        return cls(
            panoptic=_named(mapped or range(len(all_names)), all_names),
            instance=_named(thing_ids, thing_names if has_own_names else all_names),
            semantic=_named(range(len(stuff_names)), stuff_names),
            file_ids=frozenset({*(things or {}), *(stuff or {})}) or None,
            ignore_label=_DEFAULT_IGNORE_LABEL if (label := metadata.get("ignore_label")) is None else label,
        )

    def of_form(self, form: Form) -> dict[int, str] | None:
        """Contiguous ids and names of the classes that labels of this form may have."""
        return {"panoptic": self.panoptic, "instance": self.instance, "semantic": self.semantic}[form]


def _named(ids: range | list[int], names: list[str]) -> dict[int, str] | None:
    return {index: names[index] if index < len(names) else f"class {index}" for index in ids} or None
