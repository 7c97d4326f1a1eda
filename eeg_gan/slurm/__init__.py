"""Any verb on a SLURM cluster: planned, written down, submitted, watched and collected. `launch/slurm.py` is its front.

The words behind `--` are those of `eeg-gan`; a job runs them by `cli.main` from a copy of this package.
"""
