"""One thread for every test: results do not depend on the machine, and workers do not fight for cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
