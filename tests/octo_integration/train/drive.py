"""The console command with a micro model and a pause after every step: `python drive.py SECONDS finetune ...`."""

import sys
import time

from octo_integration import cli
from octo_integration.model.sizes import CONFIGS
from octo_integration.train import logs
from tests.octo_integration.train import micro_vla

CONFIGS["micro"] = micro_vla.CONFIG
advance = logs.RunLog.advance


def pause(log: logs.RunLog) -> None:
    advance(log)
    time.sleep(float(sys.argv[1]))


logs.RunLog.advance = pause  # type: ignore[method-assign]
sys.exit(cli.main(sys.argv[2:]))
