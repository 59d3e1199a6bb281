"""Where the time and memory of inference and of training go, beside transformers' Mask2Former on the same weights.

Both sides get the same pictures and live in processes of their own, which take turns. In inference they do everything
from uint8 pictures to results at the pictures' size. Three differences are part of what is compared: transformers
multiplies out the masks of all queries inside its decoder, which ours leaves to post-processing; its post-processing
works at 384 x 384 pixels whatever the size of the picture and blows the result up; and its semantic result has lost the
scores.
"""

from mask2former.benchmark.chart import check_chart_file, save_chart
from mask2former.benchmark.options import add_workload_options, workloads
from mask2former.benchmark.report import INFERENCE_STAGES, TRAINING_STAGES, Figures, Report, Statistic, report_table
from mask2former.benchmark.run import benchmark
from mask2former.benchmark.workload import DTYPES, Workload, check_device

__all__ = [
    "DTYPES",
    "INFERENCE_STAGES",
    "TRAINING_STAGES",
    "Figures",
    "Report",
    "Statistic",
    "Workload",
    "add_workload_options",
    "benchmark",
    "check_chart_file",
    "check_device",
    "report_table",
    "save_chart",
    "workloads",
]
