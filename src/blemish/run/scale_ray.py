"""Ray underneath runs at scale: a cluster to work in, and units of work through a pool of workers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blemish.errors import BadOption, BlemishError

# Units of work and their outcomes alone pass through it; pictures and parts do not.
OBJECT_STORE_BYTES = 256 << 20
CORES_PER_WORKER = 4
# A unit is given up when so many workers more have died over it: one bad picture must not kill for ever.
RETRIES = 1
UNITS_AHEAD = 2  # per worker: the next one waits there while one is scored
PATIENCE = 5.0  # seconds that the address of a cluster may take to answer
# What every client of HTTP/2, and so of gRPC and Ray, says first: its preface, and settings without any in them.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS_FRAME = 4


@dataclass(frozen=True)
class Pool:
    """Workers of a run. size: how many. threads: CPU threads of each. gpus: of each, may be a fraction."""

    size: int
    threads: int
    gpus: float = 0.0


@dataclass(frozen=True)
class Fault:
    """What ended a worker's unit, and with it the run. expected: an error that is fit to be shown to a user."""

    message: str
    expected: bool


def import_ray() -> Any:
    """Ray with Ray Data. Raises BadOption when it is not installed."""
    # Read at import: without it Ray writes about each worker that dies, into standard output of all places.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise BadOption(
            '--engine ray needs Ray, which is not installed: pip install "blemish[scale]"'
        ) from error
    return ray


def check_request(address: str | None, workers: int | None, device: str) -> None:
    """Refuse at once what cannot be had, as Ray would try for minutes. Raises BadOption, also without Ray."""
    if workers is not None and workers < 1:
        raise BadOption(f"workers is {workers}; expected at least 1")
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise BadOption(
            f"device {device!r} with --engine ray: Ray gives every worker its own; use auto, cpu or cuda"
        )
    _check_address(address)
    import_ray()


@contextlib.contextmanager
def cluster(
    address: str | None, workers: int | None, threads: int | None, device: str = "auto"
) -> Iterator[Pool]:
    """Join the cluster at `address`, or start Ray on this machine and end it afterwards; the pool that fits it.

    workers: None for one a GPU, or else one for every four CPU cores. threads: of each; None shares out the cores.
    A Ray that this program has started already is used and left running. Raises BadOption for an address where no
    cluster answers and for workers that do not fit.
    """
    check_request(address, workers, device)
    ray = import_ray()
    ours = not ray.is_initialized()
    try:
        if ours:
            _start(ray, address, workers, threads)
        yield _pool(ray.cluster_resources(), workers, threads, device)
    finally:
        if ours:
            ray.shutdown()


def run_units(
    units: Sequence[object],
    worker: Callable[..., Any],
    arguments: Sequence[object],
    pool: Pool,
    *,
    ordered: bool,
    ahead: int = UNITS_AHEAD,
) -> Iterator[Any]:
    """Outcomes of `worker(folder, *arguments)` called with each of `units`; each worker of the pool is made once.

    worker: a class derived from `UnitWorker`. ordered: in the order of the units, else as they come. ahead: units
    that a worker has at a time, which are lost together: one that dies again and again leaves some without outcome.
    Raises BlemishError for a fault that a worker reports.
    """
    ray = import_ray()
    rows = [{"unit": packed(unit)} for unit in units]
    with warnings.catch_warnings():
        # About options of Ray's own; and Ray 2.64 will have another place for the number of retries.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = ordered
        context.max_errored_blocks = -1
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            worker,
            fn_constructor_args=(str(Path.cwd()), *arguments),
            compute=ray.data.ActorPoolStrategy(
                size=min(pool.size, len(rows)), max_tasks_in_flight_per_actor=ahead
            ),
            num_cpus=pool.threads,
            num_gpus=pool.gpus or None,
            ray_remote_args_fn=partial(dict, max_task_retries=RETRIES),
        )
    _quiet()
    for row in results.iter_rows():
        yield opened(row["outcome"])


def packed(unit: object) -> bytes:
    """A unit as it goes to a worker."""
    return zlib.compress(pickle.dumps(unit), 1)


def opened(outcome: bytes) -> Any:
    """An outcome as it came back. Raises BlemishError for a fault that a user can mend, else RuntimeError."""
    found = pickle.loads(outcome)
    if isinstance(found, Fault):
        raise BlemishError(found.message) if found.expected else RuntimeError(found.message)
    return found


class UnitWorker:
    """What Ray makes in each process of the pool; derived classes say what is done with a unit."""

    def __init__(self, folder: str) -> None:
        """folder: the working folder of the run, below which relative paths are meant."""
        with contextlib.suppress(OSError):  # another machine may not have it
            os.chdir(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One unit, as Ray Data hands it over."""
        try:
            outcome: object = self.work(pickle.loads(zlib.decompress(row["unit"])))
        except BlemishError as error:
            outcome = Fault(str(error), expected=True)
        except Exception as error:  # Ray would wrap it, and go on with the next unit
            outcome = Fault(f"{type(error).__name__} in a worker: {error}", expected=False)
        return {"outcome": pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)}

    def work(self, unit: Any) -> object:
        """The outcome of a unit; pickles."""
        raise NotImplementedError


def once(function: Callable[..., Any], arguments: Sequence[object], pool: Pool) -> Any:
    """`function(*arguments)` in a process of the cluster that ends afterwards. Raises BlemishError as it does."""
    ray = import_ray()
    remote = ray.remote(num_cpus=pool.threads, num_gpus=pool.gpus, max_calls=1)(_guarded)
    outcome = ray.get(remote.remote(function, tuple(arguments)))
    if isinstance(outcome, Fault):
        raise BlemishError(outcome.message)
    return outcome


def _guarded(function: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    try:
        return function(*arguments)
    except BlemishError as error:  # not all of them can be unpickled
        return Fault(str(error), expected=True)


def _start(ray: Any, address: str | None, workers: int | None, threads: int | None) -> None:
    """Start or join, and leave the handling of signals as it was: Ray would end the program on SIGTERM."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it writes to the terminal by itself
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in (None, "local"):
        cores = max(os.cpu_count() or 1, (workers or 1) * (threads or 1))
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        options["object_store_memory"] = OBJECT_STORE_BYTES
    else:
        options["address"] = address
    main = threading.current_thread() is threading.main_thread()
    handlers = (
        {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    )
    said = io.BytesIO()
    try:
        with contextlib.nullcontext() if "num_cpus" in options else _overheard(said):
            ray.init(**options)
    except Exception as error:  # Ray raises what comes to hand, bare ones too
        raise _no_cluster(address, error, said.getvalue()) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _overheard(said: io.BytesIO) -> Iterator[None]:
    """Keep what is written to standard error meanwhile: Ray's core writes there by itself, line after line."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        terminal = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            said.write(file.read())


def _no_cluster(address: str | None, error: Exception, said: bytes) -> BadOption:
    """Why a cluster could not be joined or started. said: what Ray's core wrote meanwhile."""
    cause = " ".join(str(error).split())[:200] or type(error).__name__
    if address in (None, "local"):
        return BadOption(
            f"Ray did not start here ({cause}); name the address of a running cluster, or try again"
        )
    if type(error).__name__ == "AuthenticationError" or b"InvalidAuthToken" in said:
        return BadOption(
            f"the Ray cluster at {address} asks for a token, and this program has none or another; "
            f"set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints there"
        )
    return BadOption(f"no Ray cluster at {address} ({cause}); name the address of a running one")


def _check_address(address: str | None) -> None:
    """Raises BadOption for an address that is none, or where nobody answers."""
    if address in (None, "auto", "local"):
        return
    assert address is not None
    if address.startswith("ray://"):
        raise BadOption(
            f"address {address}: Ray Data does not run through Ray's client; run this on a machine of the cluster with "
            f"--address auto, or by `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise BadOption(
            f"address is {address!r}; expected HOST:PORT as `ray start --head` prints it, auto, or local"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE) as connection:
            greeted = _is_grpc(connection)
    except (OSError, OverflowError, UnicodeError) as error:
        cause = (getattr(error, "strerror", None) or str(error)).lower()
        raise BadOption(f"no Ray cluster answers at {address} ({cause}); is it running?") from error
    if not greeted:
        raise BadOption(
            f"what answers at {address} is no Ray cluster; expected HOST:PORT as `ray start --head` prints it"
        )


def _is_grpc(connection: socket.socket) -> bool:
    """Whether a server of gRPC answers, which sends its settings at once; Ray itself would wait for minutes."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    connection.sendall(GREETING)
    frame = b""
    while len(frame) < 4 and (more := connection.recv(4 - len(frame))):
        frame += more
    return len(frame) == 4 and frame[3] == SETTINGS_FRAME


def _pool(found: dict[str, float], workers: int | None, threads: int | None, device: str) -> Pool:
    """The pool that fits the resources of a cluster."""
    cores, gpus = int(found.get("CPU", 0)), found.get("GPU", 0.0) if device in ("auto", "cuda") else 0.0
    if workers is None:
        workers = int(gpus) or max(1, cores // max(threads or 0, CORES_PER_WORKER))
    if threads is None:
        threads = max(1, cores // workers)
    if threads > cores:
        raise BadOption(
            f"a worker of {threads} threads does not fit the cluster, which has {cores} CPU cores"
        )
    return Pool(workers, threads, min(1.0, gpus / workers))


def _quiet() -> None:
    """Ray Data reports retries and lost units on the console; the run counts and reports them itself."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)
