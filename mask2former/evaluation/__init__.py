"""Metrics: which evaluators a dataset gets, and how their figures are shown and stored."""

from mask2former.evaluation.average_precision import average_precision
from mask2former.evaluation.build import build_evaluator
from mask2former.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemanticEvaluator
from mask2former.evaluation.instance_evaluation import InstanceSegEvaluator
from mask2former.evaluation.panoptic_evaluation import PanopticEvaluator
from mask2former.evaluation.report import report_results
from mask2former.evaluation.semantic_evaluation import SemanticEvaluator
from mask2former.evaluation.youtube_vis_evaluation import YTVISEvaluator

__all__ = [
    "CityscapesInstanceEvaluator",
    "CityscapesSemanticEvaluator",
    "InstanceSegEvaluator",
    "PanopticEvaluator",
    "SemanticEvaluator",
    "YTVISEvaluator",
    "average_precision",
    "build_evaluator",
    "report_results",
]
