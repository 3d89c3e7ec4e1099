"""The console command with a micro model and a pause after every step: `python drive.py SECONDS finetune ...`."""

import sys
import time

from octo_integration.cli import commands
from octo_integration.logs import run_log
from octo_integration.model.sizes import CONFIGS
from tests.octo_integration import micro_vla

CONFIGS["micro"] = micro_vla.CONFIG
advance = run_log.RunLog.advance


def pause(log: run_log.RunLog) -> None:
    advance(log)
    time.sleep(float(sys.argv[1]))


run_log.RunLog.advance = pause  # type: ignore[method-assign]
sys.exit(commands.main(sys.argv[2:]))
