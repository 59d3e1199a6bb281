"""Metrics: which evaluators a dataset gets, and how their figures are shown and stored."""

from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
from mask2former.evaluation.report import report_results

__all__ = ["InstanceSegEvaluator", "build_evaluator", "report_results"]
