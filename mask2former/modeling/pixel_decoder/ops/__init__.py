"""Multi-scale deformable attention: the module, the operator and its plain PyTorch definition."""

from .backends import available_backends
from .functional import ms_deform_attn
from .modules import MSDeformAttn
from .reference import ms_deform_attn_reference

__all__ = ["MSDeformAttn", "available_backends", "ms_deform_attn", "ms_deform_attn_reference"]
