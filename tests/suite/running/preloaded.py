"""What ranks in tests are forked from: what they import, and one request composed, which takes seconds in each."""

import importlib

from suite.plan import plan

for name in ("torch._dynamo", "torch.distributed.fsdp", "suite.running.requests", "suite.compute.accumulation"):
    importlib.import_module(name)
for name in ("suite.store.sharded", "suite.request.titles"):
    importlib.import_module(name)
plan(["model=gated_deltanet_hybrid", "task=mqar", "eval=test"])
