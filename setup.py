"""Installs eeg-gan; torch must be there first, as compiled operators are built against the torch that loads them."""

import importlib.util
import sys

from setuptools import setup

if importlib.util.find_spec("torch") is None:
    sys.exit(
        "eeg-gan is installed against a torch that is already there, and none was found (or pip built in isolation).\n"
        "Type `make demo` or `make test`, which do everything; or by hand:\n"
        "    pip install torch==2.13.0 torchvision==0.28.0        # both in one command\n"
        "    pip install --no-build-isolation -e ."
    )

setup()
