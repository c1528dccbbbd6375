"""Two ranks, of which one sleeps while the other waits for it. argv[1]: the run's folder."""

import sys
import time
from pathlib import Path

from cola_train import distributed
from cola_train.run.owner import Owner
from cola_train.run.watchdog import Watchdog

distributed.start(60)
distributed.any_rank(False)  # both begin at once, however busy the machine is
with Watchdog(2.0, Owner(Path(sys.argv[1]))) as watchdog:
    watchdog.advance("step 7")
    if distributed.rank() == 1:
        time.sleep(60)
    distributed.any_rank(False)
