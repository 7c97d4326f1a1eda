"""Times the image operations against plain PyTorch: python tests/bench/ops.py [--quick] [--op NAME ...] [--json FILE]

Shapes of a 128-pixel network. Both sides run in turn in one process; a figure is the median over the rounds. "share" is
the time that clone() would take to move the bytes that the operation must move, over the operation's time.
"""

import argparse
import itertools
import json
import math
import os
import platform
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from eeg_gan import ops
from eeg_gan.augment import image
from eeg_gan.ops import library
from eeg_gan.ops._affine_warp import SYM6
from eeg_gan.training import heap

LIMITS = {"upfirdn2d": 5.0, "bias_act": 1.8, "affine_warp": 4.0}  # of forward + backward on a CPU
NETWORK = [(8, 64, 128), (8, 256, 32), (32, 64, 128), (32, 512, 16)]  # batch, channels, pixels
QUICK = [(8, 64, 64), (8, 512, 16)]
BIG = {torch.float32: (32, 64, 128), torch.bfloat16: (64, 64, 128)}  # above 64 MB


def strided(x, f, up, down, pads, gain):
    """upfirdn2d by a strided or transposed depthwise convolution."""
    channels, k = x.shape[1], f.shape[0]
    if up == 1:
        return F.conv2d(F.pad(x, pads), (f.flip((0, 1)) * gain).expand(channels, 1, k, k), stride=down, groups=channels)
    y = F.conv_transpose2d(x, (f * gain).expand(channels, 1, k, k), stride=up, groups=channels)
    size = x.shape[3] * up + pads[0] + pads[1] - k + 1
    y = F.pad(y, [pads[0] - k + 1, size - y.shape[3] - pads[0] + k - 1] * 2)
    return y[:, :, ::down, ::down]


def inserted(x, f, up, down, pads, gain):
    """upfirdn2d by inserting zeros."""
    n, channels, height, width = x.shape
    z = x.reshape(n, channels, height, 1, width, 1)
    z = F.pad(z, [0, up - 1, 0, 0, 0, up - 1]).reshape(n, channels, height * up, width * up)
    y = F.conv2d(F.pad(z, pads), (f.flip((0, 1)) * gain).expand(channels, 1, *f.shape), groups=channels)
    return y[:, :, ::down, ::down]


def composed_warp(x, matrix):
    """The geometric part of ADA with a margin that the batch decides: reflect, upsample, sample, downsample, crop."""
    height, width = x.shape[2:]
    corners = x.new_tensor([[-(width - 1) / 2, -(height - 1) / 2, 1], [(width - 1) / 2, -(height - 1) / 2, 1]])
    corners = torch.cat([corners, corners * x.new_tensor([-1, -1, 1])])
    reach = (matrix @ corners.mT).abs().amax((0, 2)) - x.new_tensor([width / 2, height / 2]) + 6
    margin_x, margin_y = (max(0, math.ceil(v)) for v in reach.tolist())
    while margin_x or margin_y:  # F.pad reflects once
        step_x, step_y = min(margin_x, x.shape[3] - 1), min(margin_y, x.shape[2] - 1)
        x = F.pad(x, [step_x, step_x, step_y, step_y], mode="reflect")
        margin_x, margin_y = margin_x - step_x, margin_y - step_y
    taps = x.new_tensor(SYM6) / math.sqrt(2)
    x = strided_axis(strided_axis(x, taps * 2, 2, up=True), taps * 2, 3, up=True)
    rows, columns = x.shape[2:]
    out_rows, out_columns = 2 * height + 10, 2 * width + 10
    down = torch.arange(out_rows, device=x.device) - (out_rows - 1) / 2
    right = torch.arange(out_columns, device=x.device) - (out_columns - 1) / 2
    at_y, at_x = torch.meshgrid(down / 2, right / 2, indexing="ij")
    points = torch.stack([at_x, at_y, torch.ones_like(at_x)])
    u, v = (matrix @ points.flatten(1).to(x)).view(-1, 2, out_rows, out_columns).unbind(1)
    grid = torch.stack([u * 4 / columns, v * 4 / rows], -1)
    y = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return strided_axis(strided_axis(y, taps.flip(0), 2, up=False), taps.flip(0), 3, up=False)


def strided_axis(x, taps, dim, up):
    channels, shape = x.shape[1], (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
    weight, stride = taps.view(shape).expand(channels, *[-1] * 3), (2, 1) if dim == 2 else (1, 2)
    if not up:
        return F.conv2d(x, weight.flip((2, 3)), stride=stride, groups=channels)
    y = F.conv_transpose2d(x, weight, stride=stride, groups=channels)
    return y.narrow(dim, 5, 2 * x.shape[dim])


def cases(shapes, dtype, device):
    """(operation, name, ours, compositions, leaves, bytes forward, bytes backward)"""
    for n, channels, size in shapes:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(n, channels, size, size, device=device, dtype=dtype).contiguous(memory_format=layout)
            b = torch.randn(channels, device=device, dtype=dtype)
            name = f"{n}x{channels}x{size}x{size} {'channels_last' if layout == torch.channels_last else 'contiguous'}"
            name, moved = f"{name} {str(dtype)[6:]}", x.nbytes
            others = [lambda x, b: F.leaky_relu(x + b[:, None, None], 0.2) * math.sqrt(2), with_twin(leaky)]
            yield "bias_act", f"lrelu {name}", leaky, others, (x, b), 2 * moved, 3 * moved
            for up, down, pads, gain in ((2, 1, [2, 1, 2, 1], 4), (1, 2, [1, 1, 1, 1], 1)):
                f = ops.setup_filter([1, 3, 3, 1]).to(device)
                case = f"up {up} down {down} {name}"
                part = moved if up == 1 else moved // 4  # the larger side has the network's size
                given = x if up == 1 else x[:, :, : size // 2, : size // 2].contiguous(memory_format=layout)
                options = (up, down, pads, gain)
                others = [filtered(g, f.to(dtype), options) for g in (strided, inserted)]
                both = part + part * up * up // (down * down)
                yield "upfirdn2d", case, filtered(upfirdn2d, f, options), others, (given,), both, both


def warps(batches, size, device):
    for n in batches:
        x = torch.randn(n, 3, size, size, device=device)
        matrix = image.draw(torch.Generator().manual_seed(0), n, 0.6, size, size, "bg")["warp"].to(device)
        name = f"p 0.6 {n}x3x{size}x{size} float32"
        ours, other = (lambda x, m=matrix: ops.affine_warp(x, m)), (lambda x, m=matrix: composed_warp(x, m))
        yield "affine_warp", name, ours, [other], (x,), 2 * x.nbytes, 2 * x.nbytes


def leaky(x, b):
    return ops.bias_act(x, b, act="lrelu")


def with_twin(function):
    def call(*arguments):
        with library.twins():
            return function(*arguments)

    return call


def upfirdn2d(x, f, up, down, pads, gain):
    return ops.upfirdn2d(x, f, up, down, pads, gain=gain)


def filtered(function, f, options):
    return lambda x: function(x, f, *options)


class Clock:
    """Seconds of one call, on the GPU by its events.

    On a CPU, a sample during which the kernel took a core away for another program is left out as long as there are
    others, the same for all sides.
    """

    def __init__(self, device, rounds):
        self.cuda, self.rounds, self.disturbed = device == "cuda", rounds, 0.0

    def __call__(self, calls):
        samples = [[] for _ in calls]
        for call in calls:
            call()
        start = time.perf_counter()
        while min(sum(not taken for _, taken in own) for own in samples) < self.rounds:
            if len(samples[0]) >= 3 and time.perf_counter() - start > 3:
                break
            for call, own in zip(calls, samples, strict=True):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
                seconds = self.once(call)
                own.append((seconds, not self.cuda and resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw > before))
        self.disturbed = statistics.mean(taken for own in samples for _, taken in own)
        return [statistics.median([t for t, taken in own if not taken] or [t for t, _ in own]) for own in samples]

    def once(self, call):
        if not self.cuda:
            repeats, start = 0, time.perf_counter()
            while repeats == 0 or time.perf_counter() - start < 2e-3:
                call()
                repeats += 1
            return (time.perf_counter() - start) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e4


def backward_of(function, leaves):
    leaves = [t.detach().requires_grad_() for t in leaves]
    dy = torch.randn_like(function(*leaves))
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy)


def forward_of(function, leaves):
    def call():
        with torch.no_grad():
            function(*leaves)

    return call


def measured(clock, op, name, ours, others, leaves, bytes_forward, bytes_backward):
    block = torch.empty(max(bytes_forward // 2, 1 << 16), dtype=torch.uint8, device=leaves[0].device).fill_(1)
    sides = [ours, *others]
    copy, *forward = clock([block.clone, *(forward_of(s, leaves) for s in sides)])
    copy_again, *whole = clock([block.clone, *(backward_of(s, leaves) for s in sides)])
    bandwidth, bandwidth_again = (2 * block.numel() / t for t in (copy, copy_again))
    return {
        "op": op,
        "case": name,
        "forward_ms": 1e3 * forward[0],
        "both_ms": 1e3 * whole[0],
        "forward_ratio": min(forward[1:]) / forward[0],
        "both_ratio": min(whole[1:]) / whole[0],
        "copy_GB_per_s": bandwidth / 1e9,
        "disturbed": clock.disturbed,
        "forward_share": bytes_forward / forward[0] / bandwidth,
        "both_share": (bytes_forward + bytes_backward) / whole[0] / bandwidth_again,
    }


def run(device, quick, chosen):
    if device == "cpu":
        torch.set_num_threads(2)
        network = cases(QUICK if quick else NETWORK, torch.float32, device)
        plan = itertools.chain(network, warps((8,) if quick else (8, 32), 64 if quick else 128, device))
    else:
        networks = (cases([shape], dtype, device) for dtype, shape in BIG.items())
        plan = itertools.chain(*networks, warps((32, 64), 128, device))
    clock = Clock(device, 3 if quick else 15)
    print(f"{'operation':12} {'case':46}" + " {:>8} {:>6} {:>6}".format("fwd ms", "ratio", "share") * 2)
    print("the second three: forward and backward together")
    for case in plan:
        if case[0] not in chosen:
            continue
        row = {"device": device, **measured(clock, *case)}
        values = [row[f"{part}_{what}"] for part in ("forward", "both") for what in ("ms", "ratio", "share")]
        print(f"{row['op']:12} {row['case']:46}" + " {:8.3f} {:6.2f} {:6.2f} {:8.3f} {:6.2f} {:6.2f}".format(*values))
        sys.stdout.flush()
        yield row


def kept(path, chosen):
    """The rows in the file of operations that were not measured now."""
    try:
        with open(path) as file:
            return [row for row in json.load(file)["rows"] if row["op"] not in chosen]
    except FileNotFoundError:
        return []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--op", nargs="+", choices=LIMITS, default=list(LIMITS), help="others keep their rows in FILE")
    parser.add_argument("--quick", action="store_true", help="small shapes, under 20 s")
    options = parser.parse_args()
    if not heap.keep_freed():
        print("malloc's thresholds could not be raised: page faults are part of the figures")
    print(f"compiled operators: {'in use' if ops.available() else ops.why_not()}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "not measured"
    print(f"GPU: {gpu}")
    rows = kept(options.json, options.op) if options.json else []
    for device in ("cpu",) if gpu == "not measured" else ("cuda", "cpu"):  # a run cut short still has the GPU's
        measured_now = []
        for row in run(device, options.quick, options.op):
            measured_now.append(row)
            if options.json:
                write(options.json, gpu, rows + measured_now)
        summarise(device, measured_now)
        rows += measured_now


def summarise(device, rows):
    for op in dict.fromkeys(row["op"] for row in rows):
        for part, words in ("forward", "forward"), ("both", "forward + backward"):
            ratios = [row[f"{part}_ratio"] for row in rows if row["op"] == op]
            aim = f" (aim on a CPU {LIMITS[op]})" if device == "cpu" else ""
            print(f"{op}: {words} {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}{aim}")


def write(path, gpu, rows):
    processor = platform.processor() or platform.machine()
    machine = {"processor": processor, "instructions": torch.backends.cpu.get_cpu_capability()}
    machine |= {"threads": torch.get_num_threads(), "gpu": gpu}
    with open(f"{path}.partial", "w") as file:
        json.dump({"machine": machine, "torch": torch.__version__, "rows": rows}, file, indent=1)
    os.replace(f"{path}.partial", path)


if __name__ == "__main__":
    main()
