"""The process between a job and its workers: ``python -m bouton.config.agent COUNT FOLDER WORD ...``.

It lets torch's elastic launcher start ``bouton train WORD ...`` COUNT times, passes signals on, and is silent: how a
worker ended is left in FOLDER for the job to report.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

from bouton.config.elastic import PARENT, end_with_parent


def main(arguments: list[str]) -> int:
    """Run the workers; the exit code is 0, 1, or 128 + the signal that ended them."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    count, folder, *words = arguments
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    os.environ[PARENT] = str(os.getpid())
    logging.disable(logging.CRITICAL)
    launcher = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}", "--module"]
    try:
        run.main([*launcher, "bouton", "train", *words])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        ended = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"code {failure.exitcode}"
        record = {"message": f"the process of rank {rank} ended with {ended}"}
        (Path(folder) / "agent.json").write_text(json.dumps(record))
        return 1
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
