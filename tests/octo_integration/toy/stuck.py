"""The toy, whose steps to the right take an hour where STUCK is set."""

import dataclasses
import os
import time

import numpy as np

from tests.octo_integration.toy import simulator


class Stuck(simulator.Line):
    def advance(self, action: np.ndarray) -> bool:
        if "STUCK" in os.environ and self.goal > 0.5:
            time.sleep(3600)
        return super().advance(action)


SIMULATOR = dataclasses.replace(simulator.SIMULATOR, make=Stuck)
