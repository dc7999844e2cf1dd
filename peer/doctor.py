"""`run-peer doctor`: what could keep this peer from running, each with a verdict, the cause and a remedy.

A check returns findings and never raises; it says what it could measure and no more.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from dht.addresses import AddressError, parse, require_free
from dht.errors import ConfigError, IdentityError, MurmurationError, StorageError
from dht.identity import Identity
from peer.config import PeerConfig
from peer.manifest import Manifest
from peer.status import is_alive, read

Verdict: TypeAlias = Literal["ok", "warn", "fail"]
PACKAGES = ("dht", "averaging", "ledger", "peer", "bootstrap")
STATES_KEPT = 3
FILES_NEEDED = 256
FILES_WANTED = 1024
CLOCK_TOLERANCE = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: what was looked at, how it is, why, and what to do about it."""

    check: str
    verdict: Verdict
    cause: str
    remedy: str = ""


Check: TypeAlias = Callable[[PeerConfig], Iterator[Finding]]


def examine(config: PeerConfig) -> list[Finding]:
    """Run all checks, cheap ones first. A check that crashes is itself a finding."""
    findings: list[Finding] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            findings += check(config)
        except MurmurationError as error:
            findings.append(Finding(name, "fail", error.message, error.remedy))
        except Exception as error:  # a broken installation may raise anything, and that is what we are here to tell
            findings.append(Finding(name, "fail", f"{type(error).__name__}: {error}", "install the package anew"))
    return findings


def describe(findings: list[Finding]) -> str:
    """Findings as lines for a terminal, remedies below what needs one."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<5}{finding.check:<{width}}  {finding.cause}")
        if finding.verdict != "ok" and finding.remedy:
            lines.append(f"{'':<{width + 7}}-> {finding.remedy}")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> dict[str, object]:
    """Findings in JSON's types, with the worst verdict on top."""
    order: tuple[Verdict, ...] = ("ok", "warn", "fail")
    worst = max((finding.verdict for finding in findings), key=order.index, default="ok")
    return {"verdict": worst, "checks": [asdict(finding) for finding in findings]}


def check_python(config: PeerConfig) -> Iterator[Finding]:
    """The interpreter is one that the project is tested on."""
    running = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("python", "ok" if supported else "fail", running, "use Python 3.11, 3.12 or 3.13")


def check_packages(config: PeerConfig) -> Iterator[Finding]:
    """Installed versions satisfy what this distribution asks for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("murmuration") or ()]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "warn", "murmuration itself is not installed", "pip install -e . in the source folder"
        )
        return
    required = [entry for entry in wanted if entry.marker is None or entry.marker.evaluate({"extra": ""})]
    bad = []
    for entry in required:
        try:
            found = metadata.version(entry.name)
        except metadata.PackageNotFoundError:
            bad.append(f"{entry.name} is missing")
            continue
        if not entry.specifier.contains(found, prereleases=True):
            bad.append(f"{entry.name} is {found}, not {entry.specifier}")
    remedy = "pip install --upgrade murmuration, in a virtual environment of its own"
    yield Finding("packages", "fail" if bad else "ok", "; ".join(bad) or f"{len(required)} as required", remedy)


def check_import_shadowing(config: PeerConfig) -> Iterator[Finding]:
    """`dht`, `ledger`, … are this project's, not somebody's file of the same name."""
    home = Path(__file__).resolve().parent.parent
    foreign = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != home / name / "__init__.py":
            foreign.append(f"{name} is {origin or 'missing'}")
    remedy = f"start run-peer in another folder, rename that file, or clear PYTHONPATH; ours are in {home}"
    yield Finding("imports", "fail" if foreign else "ok", "; ".join(foreign) or str(home), remedy)


def check_identity(config: PeerConfig) -> Iterator[Finding]:
    """The key file is a key, and nobody else can read it."""
    path = config.identity_path
    if not path.exists():
        yield Finding("identity", "ok", f"none yet; the first start creates {path}")
        return
    try:
        yield Finding("identity", "ok", str(Identity.load(path).peer_id))
    except IdentityError as error:
        yield Finding("identity", "fail", error.message, error.remedy)


def check_data_folder(config: PeerConfig) -> Iterator[Finding]:
    """The data folder can be written, and has room for the states that are kept."""
    folder = next(path for path in (config.data_dir.absolute(), *config.data_dir.absolute().parents) if path.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("data folder", "fail", f"{folder} is not writable", "choose another --data-dir")
        return
    free = shutil.disk_usage(folder).free
    try:
        state = read(config.status_path).state_bytes
    except StorageError:
        state = 0
    room = f"{free / 1e9:.1f} GB free in {folder}"
    if state:
        enough = free >= STATES_KEPT * state
        cause = f"{room}; one state has {state / 1e6:.1f} MB"
        yield Finding("disk", "ok" if enough else "fail", cause, f"make room for {STATES_KEPT} states")
    else:
        cause = f"{room}; the size of a state is known after the first round"
        yield Finding("disk", "ok" if free > 1e9 else "warn", cause, "make room: states are kept twice")


def check_file_limit(config: PeerConfig) -> Iterator[Finding]:
    """Sockets and files that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    verdict: Verdict = "ok" if unlimited or soft >= FILES_WANTED else "warn" if soft >= FILES_NEEDED else "fail"
    yield Finding("file limit", verdict, "unlimited" if unlimited else str(soft), f"ulimit -n {FILES_WANTED}")


def check_listen(config: PeerConfig) -> Iterator[Finding]:
    """Every address to listen on is free, or held by this very peer."""
    if config.client_mode:
        yield Finding("listen", "ok", "client mode: no port needed")
        return
    try:
        snapshot = read(config.status_path)
        running = is_alive(snapshot) and snapshot.state not in ("stopped", "failed")
    except StorageError:
        running = False
    for text in config.listen:
        address = parse(text, peer=False)
        try:
            require_free(address)
            yield Finding("listen", "ok", f"{text} is free")
        except AddressError as error:
            if running:
                yield Finding("listen", "ok", f"{text} is in use, and this peer is running (pid {snapshot.pid})")
            else:
                yield Finding("listen", "fail", error.message, error.remedy)


def check_clock(config: PeerConfig) -> Iterator[Finding]:
    """What can be known of the clock without asking anybody: is it kept by NTP, does it jump, is it plausible."""
    newest = Path(__file__).stat().st_mtime
    if time.time() < newest - 86400:
        cause = "the clock is earlier than the files of this program"
        yield Finding("clock", "fail", cause, "set the date, and switch time synchronisation on")
        return
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.1)
    jump = abs((time.time() - wall) - (time.monotonic() - steady))
    if jump > 0.05:
        yield Finding("clock", "warn", f"the clock moved by {jump:.2f} s within a moment", "check time synchronisation")
        return
    synchronised, error = _kernel_clock()
    offset = "the offset to other peers was not measured"
    if synchronised is None:
        yield Finding("clock", "ok", f"steady; this system does not tell whether it is synchronised; {offset}")
    elif synchronised:
        within = f", by its own account within {error:.3f} s" if error is not None else ""
        yield Finding("clock", "ok", f"kept in time{within}; {offset}")
    else:
        yield Finding(
            "clock", "warn", f"nothing keeps this clock in time; {offset}", "switch NTP on: timedatectl set-ntp true"
        )


def _kernel_clock() -> tuple[bool | None, float | None]:
    """Whether the Linux kernel's clock is disciplined and its maximum error in seconds; adjtimex(2), read only."""
    if not sys.platform.startswith("linux"):
        return None, None
    # struct timex: modes (int), then longs offset, freq, maxerror, esterror, status (int), …; modes 0 changes nothing.
    words = (ctypes.c_long * 64)()
    code = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(words))
    if code < 0:
        return None, None
    time_error = 5
    return code != time_error, words[3] / 1e6


def check_orphans(config: PeerConfig) -> Iterator[Finding]:
    """No libp2p daemon whose peer has died holds ports or identities."""
    orphans = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            parent, owner = int(rest.split()[1]), entry.stat().st_uid
        except (OSError, ValueError, IndexError):
            continue
        if name == "p2pd" and parent == 1 and owner == os.getuid():
            orphans.append(entry.name)
    cause = f"p2pd processes without a peer: {', '.join(orphans)}" if orphans else "no abandoned p2pd"
    yield Finding("daemons", "warn" if orphans else "ok", cause, f"kill {' '.join(orphans)}")


def check_manifest(config: PeerConfig) -> Iterator[Finding]:
    """The run manifest is there and valid."""
    if not config.run.exists():
        remedy = "ask the founder of the run for it, name it with --run, or write a new one: run-peer init"
        yield Finding("manifest", "fail", f"there is no {config.run}", remedy)
        return
    manifest = Manifest.load(config.run)
    yield Finding("manifest", "ok", f"{config.run}: run {manifest.run.name}, id {manifest.run_id.hex()[:16]}")


def check_data(config: PeerConfig) -> Iterator[Finding]:
    """The text can be read."""
    if not config.data:
        yield Finding("data", "fail", "no text to train on is named", "name a file, folder or dataset with --data")
        return
    path = Path(config.data).expanduser()
    if not path.exists():
        cause = f"{config.data} is no file here; taken for the name of a Hugging Face dataset"
        yield Finding("data", "warn", cause, "if it was meant as a file, correct --data")
        return
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    denied = [entry for entry in files if not os.access(entry, os.R_OK)]
    size = sum(entry.stat().st_size for entry in files)
    if denied or not size:
        cause = f"{denied[0]} cannot be read" if denied else f"{path} holds no text"
        yield Finding("data", "fail", cause, "check --data and the files' permissions")
    else:
        yield Finding("data", "ok", f"{len(files)} files, {size / 1e6:.1f} MB in {path}")


def check_bootstrap(config: PeerConfig) -> Iterator[Finding]:
    """Every bootstrap address answers, as the peer that it names."""
    if not config.bootstrap:
        yield Finding("bootstrap", "warn", "no address to meet others through", "name one with --bootstrap")
        return
    import asyncio

    yield from asyncio.run(_dial_all(config))


async def _dial_all(config: PeerConfig) -> list[Finding]:
    import tempfile

    from dht.dial import Verdict
    from dht.host import Host

    remedies = {
        Verdict.REFUSED: "nothing listens there: is it running, is the port right?",
        Verdict.TIMEOUT: "no answer: check the address, and firewalls on the way",
        Verdict.WRONG_PEER: "another peer answers there: ask for the current address",
    }
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        # A key of its own: the real one may be in use by the running peer.
        key = Path(folder) / "identity.key"
        Identity.load_or_create(key)
        host = await Host.start(key, listen=("/ip4/127.0.0.1/tcp/0",))
        try:
            for address in config.bootstrap:
                dial = await host.dial(address)
                good = dial.verdict is Verdict.OK
                findings.append(
                    Finding("bootstrap", "ok" if good else "fail", str(dial), remedies.get(dial.verdict, ""))
                )
        finally:
            await host.stop()
    return findings


def check_gpu(config: PeerConfig) -> Iterator[Finding]:
    """The device that was asked for is there."""
    import torch

    found = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if found else "no CUDA device: training on the CPU"
    missing = config.device == "cuda" and not found
    remedy = "install a CUDA build of torch and its driver, or take --device auto"
    yield Finding("gpu", "fail" if missing else "ok", name, remedy)


def check_bitsandbytes(config: PeerConfig) -> Iterator[Finding]:
    """8-bit AdamW takes a step that changes something, where the run wants it."""
    try:
        wanted = Manifest.load(config.run).train.optimizer == "adamw8bit"
    except ConfigError:
        wanted = False
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import torch
        from bitsandbytes.optim import AdamW8bit

        weights = torch.nn.Parameter(torch.ones(8192))  # smaller tensors are kept in 32 bits
        weights.grad = torch.ones_like(weights)
        AdamW8bit([weights], lr=0.1).step()
        works, cause = bool((weights < 1).all()), "8-bit AdamW runs"
    except Exception as error:  # a missing native library raises whatever it likes
        works, cause = False, f"{type(error).__name__}: {error}"
    if works:
        yield Finding("bitsandbytes", "ok", cause)
    elif wanted:
        remedy = "pip install murmuration[bnb]; until then torch's AdamW stands in"
        yield Finding("bitsandbytes", "warn", f"the run wants 8-bit AdamW, which does not run here: {cause}", remedy)
    else:
        yield Finding("bitsandbytes", "ok", "not usable here, and this run does not need it")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_import_shadowing,
    check_identity,
    check_data_folder,
    check_file_limit,
    check_listen,
    check_clock,
    check_orphans,
    check_manifest,
    check_data,
    check_bootstrap,
    check_gpu,
    check_bitsandbytes,
)
