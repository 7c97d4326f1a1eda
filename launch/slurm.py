"""Any verb, grid or pipeline on a SLURM cluster.

    python launch/slurm.py --cluster example --dry-run -- gan configs/gan/wacv2024.yaml g_optim.lr=0.002,0.0025
    python launch/slurm.py status runs/gan
    python launch/slurm.py collect runs/gan --output table.csv

The words behind `--` are those of `eeg-gan`, and never change.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from eeg_gan.slurm.main import main

    sys.exit(main(sys.argv[1:]))
