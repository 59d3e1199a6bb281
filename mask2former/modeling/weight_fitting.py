"""Which tensor of a file goes where in a model, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mask2former.modeling.load_report import LoadReport, examples, grouped
from mask2former.modeling.weight_names import backbone_names, current_names, is_classifier, is_derived, part, unwrapped
from mask2former.modeling.weight_resizing import resized

__all__ = ["Shapes", "fit_weights"]

Shapes = Mapping[str, tuple[int, ...]]

_PREDICTOR = "sem_seg_head.predictor."
#: Frozen norms start with mean 0 and variance 1: right for Caffe2's files, which have folded both into the rest.
_STATISTICS = (".running_mean", ".running_var")


@dataclass
class _Candidates:
    """Tensors of a file in the model's terms.

    Attributes:
        tensors: the model's name, or for what it does not have a similar one -> tensor.
        renamed: those whose name in the file is another, apart from a missing beginning.
        section: the piece of the model, by the name of a tensor, that a file has wholly or not at all.
        of_backbone: the file is of a backbone alone, made by any library.
    """

    tensors: dict[str, Tensor]
    renamed: list[str]
    section: Callable[[str], str]
    of_backbone: bool


def fit_weights(
    shapes: Shapes, tensors: Mapping[str, Tensor], *, source: str = "", allow_head_mismatch: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """Choose, rename and resize what a model takes from a file.

    A section of the model (the pixel decoder, the transformer decoder; in a backbone file each stage) that the file
    lacks altogether keeps its initial values; a section that it holds must fit completely.

    Args:
        shapes: of the model's state dict.
        tensors: of the file, under its names.
        source: of the tensors, for messages.
        allow_head_mismatch: let a class head of another number of classes start afresh.

    Returns:
        The model's name -> tensor of the model's shape, and the report.

    Raises:
        ValueError: nothing fits, a section is of another architecture, or the class head has another size.
    """
    wanted = {name: shape for name, shape in shapes.items() if not is_derived(name)}
    candidates = _in_terms_of_the_model(wanted, tensors, source)
    given = candidates.tensors
    report = LoadReport(reset=_class_heads_of_other_size(wanted, given, source, allow_head_mismatch))
    chosen: dict[str, Tensor] = {}
    misfits = []
    for name, tensor in given.items():
        if name not in wanted or name in report.reset:
            continue
        fitted = tensor if tuple(tensor.shape) == wanted[name] else _resized(name, tensor, wanted)
        if fitted is None:
            misfits.append(f"{name} {tuple(tensor.shape)} instead of {wanted[name]}")
        else:
            chosen[name] = fitted
            if fitted is not tensor:
                report.resized.append(name)
    _sort_out_the_rest(report, wanted, candidates, misfits, source)
    if not chosen:
        raise ValueError(
            f"checkpoint {source!r} fits this model nowhere: it holds {grouped(tensors)}, the model {grouped(wanted)}"
        )
    report.loaded = list(chosen)
    report.renamed = [name for name in candidates.renamed if name in chosen]
    return chosen, report


def _in_terms_of_the_model(wanted: Shapes, tensors: Mapping[str, Tensor], source: str) -> _Candidates:
    tensors = unwrapped(tensors)
    try:
        named = {name: tensor for name, tensor in current_names(tensors).items() if not is_derived(name)}
        if {*map(part, named)} & {*map(part, wanted)}:
            return _Candidates(named, [name for name in named if name not in tensors], part, of_backbone=False)
        origins, beginning = backbone_names(named, wanted)
    except ValueError as error:
        raise ValueError(f"checkpoint {source!r}: {error}") from error
    num_parts = beginning.count(".") + 1
    return _Candidates(
        tensors={name: named[origin] for name, origin in origins.items()},
        renamed=[name for name, origin in origins.items() if name != beginning + origin],
        section=lambda name: ".".join(name.split(".")[:num_parts]),
        of_backbone=True,
    )


def _resized(name: str, tensor: Tensor, wanted: Shapes) -> Tensor | None:
    # Where queries are the classes (per-pixel-plus baseline), another number of them is another meaning.
    return None if name in _class_head(wanted) else resized(name, tensor, wanted[name])


def _class_head(wanted: Shapes) -> list[str]:
    """The only tensors that may start afresh when a model gets other classes."""
    kinds = (
        ("class_embed.weight", "class_embed.bias"),  # mask classification: one row per class and one for no object
        ("weight", "bias"),  # per-pixel baseline
        ("query_embed.weight",),  # per-pixel-plus baseline: each query is a class
    )
    heads = ([_PREDICTOR + name for name in names] for names in kinds)
    return next((head for head in heads if head[0] in wanted), [])


def _class_heads_of_other_size(wanted: Shapes, given: Mapping[str, Tensor], source: str, is_allowed: bool) -> list[str]:
    names = [
        name
        for name in _class_head(wanted)
        if name in given
        # Another width is another architecture; only the number of rows follows the classes.
        and tuple(given[name].shape) != wanted[name]
        and tuple(given[name].shape[1:]) == wanted[name][1:]
    ]
    if names and not is_allowed:
        num_others = int(".class_embed." in names[0])  # the row for no object
        num_theirs, num_ours = len(given[names[0]]) - num_others, wanted[names[0]][0] - num_others
        raise ValueError(
            f"checkpoint {source!r} has a class head for {num_theirs} classes, the model one for {num_ours}: set "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES to {num_theirs}, or MODEL.WEIGHTS_ALLOW_HEAD_MISMATCH to True to keep "
            f"everything else and start the class head afresh"
        )
    return names


def _sort_out_the_rest(
    report: LoadReport, wanted: Shapes, candidates: _Candidates, misfits: list[str], source: str
) -> None:
    """Fill the lists of what is not loaded, or raise ValueError where that means another architecture."""
    given, section = candidates.tensors, candidates.section
    sections_of_file, sections_of_model = ({section(name) for name in names} for names in (given, wanted))
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    has_statistics = any(name.endswith(_STATISTICS) for name in given)
    for name in missing:
        is_folded = candidates.of_backbone and not has_statistics and name.endswith(_STATISTICS)
        if section(name) not in sections_of_file or is_folded:
            report.fresh.append(name)
    for name in extra:
        if section(name) not in sections_of_model or (candidates.of_backbone and is_classifier(name)):
            report.unused.append(name)
    excused = {*report.fresh, *report.unused}
    problems = [
        f"{len(names)} {what}, e.g. {examples(names)}"
        for names, what in (
            (misfits, "tensors of another shape"),
            ([name for name in missing if name not in excused], "missing"),
            ([name for name in extra if name not in excused], "that the model does not have"),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"checkpoint {source!r} is of another architecture than the model of this config: {'; '.join(problems)}. "
            "Use the config that it was trained with."
        )
