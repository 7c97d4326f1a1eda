"""Image operations with first and second derivatives; each file holds a function and its plain PyTorch twin."""

from eeg_gan.ops._affine_warp import affine_warp
from eeg_gan.ops._bias_act import ACTIVATIONS, bias_act
from eeg_gan.ops._upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from eeg_gan.ops.library import available, computes_bfloat16, why_not

__all__ = [
    "ACTIVATIONS",
    "affine_warp",
    "available",
    "bias_act",
    "computes_bfloat16",
    "downsample2d",
    "filter2d",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
    "why_not",
]
