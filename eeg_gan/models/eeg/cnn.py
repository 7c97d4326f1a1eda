"""The convolutional encoder of Singh & Raman, WACV 2024, section 3.1, with a cure for short windows."""

import torch.nn.functional as F
from torch import Tensor, nn

from eeg_gan.config import UserError

SMALLEST_AXIS = 4  # with keep_time, a stride may not leave an axis shorter than this


class CNNEncoder(nn.Module):
    """x [B, C, T] -> unit vectors [B, dim]: 3x3 convolutions over the (time, electrode) plane, mean pool, linear.

    Four blocks of (convolution of stride 2 without bias, instance norm, LeakyReLU 0.01, dropout); 6,325,376 parameters
    at the default widths, whatever the input. On 32 x 14 inputs the paper's strides leave a 2 x 1 map, whose instance
    norm is +-1 for every input: the feature no longer depends on the EEG. `keep_time` drops each stride that would
    leave an axis shorter than 4. Windows of 49 samples on 49 electrodes and more are untouched by it, so there, and
    with `keep_time=False` everywhere, this is the paper's exact network.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        dim: int,
        widths: tuple[int, ...] = (128, 256, 512, 1024),
        dropout: float = 0.05,
        keep_time: bool = True,
    ):
        super().__init__()
        blocks, size, width_in = [], (n_times, n_chans), 1
        for width in widths:
            stride = tuple(1 if keep_time and (n + 1) // 2 < SMALLEST_AXIS else 2 for n in size)
            size = tuple((n + s - 1) // s for n, s in zip(size, stride, strict=True))
            blocks.append(_block(width_in, width, stride, dropout))
            width_in = width
        if size[0] * size[1] < 2:  # an instance norm over one value is zero whatever the EEG
            raise UserError(
                f"cnn leaves one value of {n_times} samples on {n_chans} electrodes, which instance norm wipes out; "
                "set keep_time=true, list fewer widths, cut longer windows or take lstm"
            )
        self.map_size = size  # (time, electrode) of the last map
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width_in, dim, bias=False)

    # B batch, C electrode, T time sample, K width of the last block
    def pooled(self, x_BCT: Tensor) -> Tensor:
        """The mean over the last map, [B, K], before the linear map."""
        return self.blocks(x_BCT.transpose(1, 2).unsqueeze(1)).mean((2, 3))

    def forward(self, x_BCT: Tensor) -> Tensor:
        return F.normalize(self.linear(self.pooled(x_BCT)), dim=-1)


def _block(width_in: int, width: int, stride: tuple[int, ...], dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride, 1, bias=False),
        nn.InstanceNorm2d(width),
        nn.LeakyReLU(0.01),
        nn.Dropout(dropout),
    )
