"""`python -m eeg_gan.slurm`, for those who have the package without the folder launch/."""

import sys

from eeg_gan.slurm.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
