"""What ranks in tests are forked from: what they import, and their requests composed, which takes seconds in each.

So does the state of the code that a run records, for which every source that it reaches is read.
"""

import importlib

from suite.plan import plan
from suite.store.code_state import code_state

for name in ("torch._dynamo", "torch.distributed.fsdp", "suite.running.requests", "suite.compute.accumulation"):
    importlib.import_module(name)
for name in ("suite.store.sharded", "suite.request.titles", "reports.terminal"):
    importlib.import_module(name)
for model in ("gated_deltanet_hybrid", "mesanet"):
    for evaluation in ("test", "none"):
        # In the order of the tests: what is composed is kept by it.
        (run,) = plan(["task=mqar", f"eval={evaluation}", f"model={model}"])
    code_state(run.config)
