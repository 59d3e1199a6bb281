"""The page that comes with an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask2former.deploy.export.parity import MOST, Agreement, Speed

__all__ = ["report_table", "write_readme"]


def report_table(agreements: Sequence[Agreement], speed: Speed | None) -> str:
    """Markdown."""
    lines = [
        f"| picture | result | class logits of {MOST:.0%} of the queries differ by | of all | mask logits by "
        "| same mask sign | segments | same segments |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {_size(line.image_size)} | {_size(line.output_size)} | {line.most_class_logits:.2g} "
            f"| {line.class_logits:.2g} | {line.mask_logits:.2g} | {line.masks:.4%} | {line.num_segments} "
            f"| {line.segments:.4%} |"
            for line in agreements
        ),
    ]
    if speed is not None:
        lines += [
            "",
            f"One picture of {_size(speed.image_size)}: PyTorch {speed.eager:.3f} s, exported {speed.exported:.3f} s; "
            f"processor time {speed.eager_processor:.3f} s and {speed.exported_processor:.3f} s: "
            f"{speed.ratio:.2f} times as fast.",
        ]
    return "\n".join(lines)


def write_readme(path: Path, manifest: Mapping[str, Any], agreements: Sequence[Agreement], speed: Speed) -> None:
    inputs = "\n".join(f"- `{name}`: {text}" for name, text in manifest["inputs"].items())
    thresholds = ", ".join(f"{name} {value}" for name, value in manifest["thresholds"].items())
    versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
    preparation = manifest["preparation"]
    path.write_text(
        f"""# {manifest["task"].capitalize()} segmentation, {manifest["format"]}, {manifest["precision"]}

Made from {manifest["weights"] or "random weights"} with {versions}. SHA-256 of the tensors:
{manifest["weights_sha256"]}.

```python
from mask2former.deploy import load

segmenter = load("this folder")
result = segmenter(picture)  # (H, W, 3) uint8 RGB
```

## The model itself: `{manifest["model_file"]}`

Takes
{inputs}

gives {", ".join(f"`{name}`" for name in manifest["outputs"])}. Normalization, padding and the rules of the task are
inside. Before it, pictures are resized so that the shorter side has {preparation["min_size"]} pixels and the longer at
most {preparation["max_size"]}. Thresholds: {thresholds}. `classes.json` lists names, colors, ids in the data set, and
which classes are things.{_host_note(manifest)}

## Compared with the model it was made from

{report_table(agreements, speed)}

## License

{manifest["license"]}
"""
    )


def _host_note(manifest: Mapping[str, Any]) -> str:
    if manifest["format"] != "aot_inductor":
        return ""
    return (
        "\n\nThe file holds machine code for the system, the version of torch and the kind of CPU in `host.json`,\n"
        "and is refused elsewhere."
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
