"""Where the time of inference goes, stage by stage, beside transformers' independent Mask2Former on the same weights.

Both sides get the same uint8 pictures and do everything up to results at the pictures' size. Three differences are part
of what is compared: transformers multiplies out the masks of all queries inside its decoder, which ours leaves to
post-processing; its post-processing works at 384 x 384 pixels whatever the size of the picture and blows the result up;
and its semantic result has lost the scores.
"""

from mask2former.benchmark.report import STAGES, Report, Statistic, report_table
from mask2former.benchmark.run import benchmark
from mask2former.benchmark.transformers_config import transformers_config

__all__ = ["STAGES", "Report", "Statistic", "benchmark", "report_table", "transformers_config"]
