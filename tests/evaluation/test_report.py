"""The table and the file of results."""

from __future__ import annotations

import json
import logging
import math

from mask2former.evaluation import report_results
from mask2former.evaluation.report import results_table

RESULTS = {"digits_val": {"sem_seg": {"mIoU": 12.341, "IoU-brick": 7.0}, "segm": {"AP": math.nan, "AP50": 50.0}}}


def test_the_table_has_a_line_for_each_task_without_figures_of_single_classes():
    lines = results_table(RESULTS).splitlines()
    assert lines[2].split() == ["digits_val", "sem_seg", "mIoU", "12.34"]
    assert lines[3].split() == ["digits_val", "segm", "AP", "nan", "AP50", "50.00"]
    assert len(lines) == 4


def test_the_file_has_all_figures_in_strict_json(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        report_results(RESULTS, str(tmp_path / "inference"))
    content = (tmp_path / "inference" / "metrics.json").read_text()
    assert json.loads(content, parse_constant=lambda name: name) == {
        "digits_val": {"sem_seg": {"mIoU": 12.341, "IoU-brick": 7.0}, "segm": {"AP": None, "AP50": 50.0}}
    }
    assert "all figures in" in caplog.text and "mIoU" in caplog.text
