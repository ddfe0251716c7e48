"""One cache for several threads and processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cached_features import RAW, SIZE, Loader, check_equal, encoded

from blemish.clip.cache import FeatureCache
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip
from blemish.types import FeatureSpec


@pytest.fixture(scope="module")
def clip(small_backbone: Path) -> CLIP:
    return load_clip(small_backbone)


def test_threads_may_read_at_once(tmp_path: Path, clip: CLIP) -> None:
    keys = [str(number) for number in range(12)]
    FeatureCache(tmp_path, clip, RAW, SIZE, shard_images=1).build(keys, Loader(keys))
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    expected = encoded(clip, keys, RAW)
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(12)
        try:
            for i in order:
                found = cache.read([keys[i]])
                assert torch.allclose(found.class_feature[0], expected.class_feature[i], atol=1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


SCRIPT = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from blemish.clip.cache import FeatureCache
from blemish.clip.weights import load_clip
from blemish.types import FeatureSpec

torch.set_num_threads(1)
folder, backbone, log, go, pause, *keys = sys.argv[1:]
cache = FeatureCache(folder, load_clip(backbone), FeatureSpec(projected=False), 40, shard_images=4)
Path(log).touch()
while not Path(go).exists():
    time.sleep(0.01)

def load(index):
    time.sleep(float(pause))
    rng = np.random.default_rng(list(keys[index].encode()))
    with open(log, "a") as file:
        file.write(keys[index] + "\\n")
    return rng.standard_normal((3, 40, 40)).astype(np.float32)

cache.build(keys, load, batch_size=2)
assert cache.missing(keys) == []
"""
PLAIN = FeatureSpec(projected=False)
WAIT = 300.0  # seconds after which a test gives up; starting a process takes a minute where many run


class Builders:
    """Processes that build the same cache and write down what they load."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.backbone, self.logs = folder, backbone, list[Path]()
        self.go, self.cache = folder / "go", folder / "cache"

    def start(self, keys: Sequence[str], pause: float) -> subprocess.Popen[bytes]:
        log = self.folder / f"log{len(self.logs)}"
        self.logs.append(log)
        values: list[Any] = [self.cache, self.backbone, log, self.go, pause, *keys]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, values)], env=environment)

    def release(self) -> None:
        wait_for(lambda: all(log.exists() for log in self.logs))
        self.go.touch()

    def loaded(self) -> list[list[str]]:
        return [log.read_text().split() for log in self.logs]


@pytest.fixture
def builders(tmp_path: Path, small_backbone: Path) -> Builders:
    return Builders(tmp_path, small_backbone)


def wait_for(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_share_the_work(builders: Builders, clip: CLIP) -> None:
    keys = [str(number) for number in range(32)]
    processes = [builders.start(keys, 0.05), builders.start(keys, 0.05)]
    builders.release()
    assert [process.wait(WAIT) for process in processes] == [0, 0]
    loaded = builders.loaded()
    assert Counter(loaded[0] + loaded[1]) == Counter(keys)  # nothing twice
    assert all(loaded)  # and neither only waited
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE)
    check_equal(cache.read(keys), encoded(clip, keys, PLAIN), "fp16")
    assert not list(cache.folder.glob("*.part"))


@pytest.mark.slow
def test_what_another_process_is_computing_is_waited_for(builders: Builders, clip: CLIP) -> None:
    keys = list("abcd")  # one file, so that there is nothing to do but wait
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE)
    process = builders.start(keys, 2)
    builders.release()
    wait_for(lambda: any(cache.folder.glob("*.part")) or any(cache.folder.glob("*.shard")))
    loader = Loader(keys)
    cache.build(keys, loader)
    assert not loader.calls
    assert process.wait(WAIT) == 0
    check_equal(cache.read(keys), encoded(clip, keys, PLAIN), "fp16")


@pytest.mark.slow
def test_a_kill_costs_the_unfinished_file_and_no_more(builders: Builders, clip: CLIP) -> None:
    keys = [str(number) for number in range(24)]
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE, shard_images=4)
    process = builders.start(keys, 1)
    builders.release()
    wait_for(lambda: len(list(cache.folder.glob("*.shard"))) >= 2)
    wait_for(lambda: len(list(cache.folder.glob("*.part"))) >= 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(cache.folder.glob("*.part"))
    stored = sorted(set(range(24)) - set(cache.missing(keys)))
    assert left
    assert 8 <= len(stored) < 24
    assert stored == list(range(len(stored)))
    loader = Loader(keys)
    cache.build(keys, loader, batch_size=2)
    assert loader.calls == Counter(keys[len(stored) :])  # what was finished is not done again
    assert not any(path.exists() for path in left)
    check_equal(cache.read(keys), encoded(clip, keys, PLAIN), "fp16")


@pytest.mark.slow
def test_who_waits_for_a_process_that_is_killed_takes_over(builders: Builders, clip: CLIP) -> None:
    keys = list("abcd")
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE)
    process = builders.start(keys, WAIT)
    builders.release()
    wait_for(lambda: any(cache.folder.glob("*.part")))
    loader = Loader(keys)
    thread = threading.Thread(target=cache.build, args=(keys, loader), daemon=True)
    thread.start()
    time.sleep(0.3)
    assert not loader.calls
    process.send_signal(signal.SIGKILL)
    process.wait()
    thread.join(WAIT)
    assert loader.calls == Counter(keys)
    assert cache.missing(keys) == []
