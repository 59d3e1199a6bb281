"""The page of published figures has a row and a command for every published configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mask2former.engine import argument_parser
from tests.golden import published_state_dicts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
#: config -> (parameters in millions, hash)
ROWS = {
    match[1]: (match[2], match[3])
    for match in re.finditer(r"^\| \[.+?\]\(\.\./configs/(\S+?)\) \|.* \| ([\d.]+) \| `([0-9a-f]{6})` \|$", PAGE, re.M)
}
COMMANDS = re.findall(r"^python (train_net\.py .*)$", PAGE, re.M)
PUBLISHED = {name for name in published_state_dicts()["configs"] if not name.startswith("modified:")}


def test_every_published_configuration_has_a_row() -> None:
    assert set(ROWS) == PUBLISHED
    assert len({checkpoint for _, checkpoint in ROWS.values()}) == len(ROWS), "two rows have the same checkpoint"


@pytest.mark.parametrize("config", sorted(PUBLISHED))
def test_a_row_gives_the_size_of_the_model(config: str) -> None:
    assert ROWS[config][0] == f"{published_state_dicts()['configs'][config]['num_parameters'] / 1e6:.1f}"


def test_every_row_has_a_command_that_the_script_understands() -> None:
    parsed = [argument_parser().parse_args(command.split()[1:]) for command in COMMANDS]
    assert all(arguments.eval_only for arguments in parsed)
    evaluated = {arguments.config_file.removeprefix("configs/"): arguments.opts for arguments in parsed}
    assert evaluated == {
        config: ["MODEL.WEIGHTS", f"model_final_{checkpoint}.pkl"] for config, (_, checkpoint) in ROWS.items()
    }


def test_the_table_of_sizes_has_every_published_configuration_with_its_parameters() -> None:
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\S+\.yaml)` \| \d+x\d+ \| ([\d.]+) \|", page, re.M))
    assert set(rows) >= PUBLISHED
    for config in PUBLISHED:
        assert rows[config] == f"{published_state_dicts()['configs'][config]['num_parameters'] / 1e6:.2f}", config
