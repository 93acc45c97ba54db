"""`torchrun … odd_rank_program.py MODULE FOLDER OTHER …`: a module of which rank 1 reads the other folder."""

import os
import runpy
import sys

if __name__ == "__main__":
    module, folder, other, *rest = sys.argv[1:]
    sys.argv = [module, "--model", other if os.environ["RANK"] == "1" else folder, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
