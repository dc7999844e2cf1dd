from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from averaging.background import give_way


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")
def test_only_the_calling_thread_gives_way():
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        there = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result(60)
    assert there == max(here, 5)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == here
