"""`kauli doctor`: what is installed, what is missing, and what to do about it; nothing is loaded or started."""

import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Thread
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from kauli.deploy.cli.terminal import Json, Storage, output, table
from kauli.models.errors import KauliError, UsageError
from kauli.models.paths import default_storage, kauli_home

_GIB = 2**30
_LEAST_MEMORY, _FEW_MEMORY = 3 * _GIB, 8 * _GIB  # the smallest base in training; the demo beside a desktop
_LEAST_DISK, _FEW_DISK = _GIB, 5 * _GIB  # kauli's own bases and data are about 1.5 GiB
_LEAST_SHARED = 512 * 2**20  # Ray's object store takes 256 MiB of it
_FEW_FILES = 4096  # open files; each of Ray's workers has some dozens
_STORAGE_S = 2.0  # that a remote storage may take for an answer
_JOIN = "to join a cluster: RAY_ADDRESS for kauli train, --address for kauli serve"
_SHOWN = ("torch", "transformers", "peft", "ray", "pydantic", "safetensors")


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: Literal["ok", "warning", "problem"]
    found: str
    advice: str | None = None
    """What to do about it."""


def doctor(
    storage: Storage = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Check the nodes of this Ray cluster instead of this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check versions, hardware, storage, bases, ports, Ray and limits; exit code 1 if there is a problem."""
    if address is not None:
        from kauli.deploy.cli.cluster_doctor import check_cluster

        findings = check_cluster(address, storage or default_storage())
    else:
        findings = [finding for check in CHECKS for finding in check(storage or default_storage())]
    lines = [
        {"state": one.state, "check": one.check, "found": one.found + (f" -> {one.advice}" if one.advice else "")}
        for one in findings
    ]
    output(as_json, [asdict(one) for one in findings], table(lines, ["state", "check", "found"]))
    if any(one.state == "problem" for one in findings):
        raise typer.Exit(1)


def _versions(storage: str) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("kauli", "ok", f"{version('kauli')}, {Path(__file__).parents[2]}")
    wrong = []
    for line in requires("kauli") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    shown = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
    if wrong:
        yield Finding("packages", "problem", ", ".join(wrong), "install kauli again: make setup, or pip install kauli")
    else:
        yield Finding("packages", "ok", shown)
    for extra, package, use in (("av", "av", "m4a, WebM and other audio"), ("s3", "s3fs", "an s3:// storage")):
        if found := _version(package):
            yield Finding(package, "ok", found)
        else:
            needed = extra == "s3" and storage.startswith("s3:")
            advice = f"for {use}: pip install 'kauli[{extra}]'"
            yield Finding(package, "problem" if needed else "ok", "not installed", advice)


def _speech(storage: str) -> Iterator[Finding]:
    try:
        import espeakng_loader

        path = Path(espeakng_loader.get_library_path())
    except (ImportError, OSError) as error:
        yield Finding("espeak", "warning", str(error), "synthetic speech needs it: pip install espeakng-loader")
    else:
        state: Literal["ok", "warning"] = "ok" if path.is_file() else "warning"
        yield Finding("espeak", state, str(path), None if path.is_file() else "pip install espeakng-loader")


def _processor(storage: str) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = _text("/proc/cpuinfo").splitlines()
    flags = {flag for line in info if line.startswith(("flags", "Features")) for flag in line.split()}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    known = ", ".join(flag for flag in wanted if flag in flags) or "no vector extensions known"
    slow = bool(flags) and not flags & {"avx2", "asimd"}
    advice = "without AVX2 everything is several times slower: use another machine" if slow else None
    yield Finding("cpu", "warning" if slow else "ok", f"{cores} cores, {platform.machine()}: {known}", advice)


def _memory(storage: str) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal() and int(limit) < total:  # a container's own limit
        total = int(limit)
        free = min(free, total - int(_text("/sys/fs/cgroup/memory.current").strip() or 0))
    advice = "end other programs, or take a smaller base" if free < _FEW_MEMORY else None
    yield Finding("memory", _level(free, _LEAST_MEMORY, _FEW_MEMORY), f"{_size(free)} free of {_size(total)}", advice)


def _gpu(storage: str) -> Iterator[Finding]:
    paths = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [
        line.partition(":")[2].strip()
        for path in paths
        for line in _text(path).splitlines()
        if line.startswith("Model")
    ]
    build = _version("torch") or ""
    if not names:
        yield Finding("gpu", "ok", "none: everything runs on the CPU")
    elif "+cpu" in build:
        advice = "torch is a build for the CPU: install the one for CUDA (https://pytorch.org/get-started/locally/)"
        yield Finding("gpu", "warning", f"{', '.join(names)}, torch {build}", advice)
    elif not os.access("/dev/nvidia0", os.R_OK | os.W_OK):
        advice = "the device files are not readable here: start the container with --gpus all"
        yield Finding("gpu", "warning", ", ".join(names), advice)
    else:
        yield Finding("gpu", "ok", f"{', '.join(names)}, torch {build}")


def _places(storage: str) -> Iterator[Finding]:
    home = kauli_home()
    folders = {"KAULI_HOME": home, "temporary": Path(tempfile.gettempdir())}
    if "://" not in storage:
        folders["storage"] = Path(storage).expanduser().absolute()
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        found = f"{folder}: {_size(free)} free on the disk"
        if name == "KAULI_HOME" and folder.is_dir():
            found += f", {_size(_used(folder))} used by kauli"
        advice = "free some space, or set KAULI_HOME to another disk" if free < _FEW_DISK else None
        state = _level(free, _LEAST_DISK, _FEW_DISK)
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            state, advice = "problem", f"it can't be written ({error.strerror}): set KAULI_HOME or --storage"
        yield Finding(name, state, found, advice)


def _bases(storage: str) -> Iterator[Finding]:
    from kauli.models.bases.find import known_bases, terms_accepted
    from kauli.models.bases.folder import damaged_files, read_record

    records = {}
    for folder in sorted((kauli_home() / "bases").glob("[!.]*/")):
        record = read_record(folder)
        if record is None:
            continue
        records[record.name] = record
        size = _size(sum(file.bytes for file in record.files.values()))
        if damaged := damaged_files(folder, record, content=False):
            text = f"{size}, damaged: {', '.join(damaged)}"
            yield Finding(f"base {record.name}", "problem", text, f"kauli fetch {record.name}")
        elif not record.name.startswith("debug"):
            yield Finding(f"base {record.name}", "ok", f"{size}, {record.card.get('licence')}")
    missing = {name: card for name, card in known_bases().items() if name not in records and card.source != "debug"}
    for name, card in missing.items():
        accept = "" if terms_accepted(name, card) else " --accept-terms"
        found = "not fetched" + (", its terms are not accepted" if accept else "")
        yield Finding(f"base {name}", "ok", found, f"kauli fetch {name}{accept}")


def _adapters(storage: str) -> Iterator[Finding]:
    results: list[Finding] = []
    # A remote storage may take minutes to fail
    reading = Thread(target=lambda: results.extend(list(_registry(storage))), daemon=True)  # all at once, or none
    reading.start()
    reading.join(_STORAGE_S)
    late = Finding("adapters", "warning", f"{storage} did not answer within {_STORAGE_S:g} s", "check the network")
    yield from results or [late]


def _registry(storage: str) -> Iterator[Finding]:
    from kauli.models.adapters.registry import Registry
    from kauli.models.bases.find import local_bases

    try:
        registry = Registry(storage)
        names = registry.names()
        broken, count, wanted = [], 0, {}
        for name in names:
            for number in registry.versions(name):
                try:
                    wanted[registry.card(f"{name}@{number}").base.name] = f"{name}@{number}"
                    registry.check_whole(name, number)
                    count += 1
                except KauliError as error:
                    broken.append(Finding(f"adapter {name}@{number}", "problem", str(error), _remove(name, number)))
    except KauliError as error:
        yield Finding("adapters", "problem", str(error), "check --storage and KAULI_STORAGE")
        return
    advice = None if count else "kauli train text-sw makes one"
    yield Finding("adapters", "ok", f"{count} whole versions of {len(names)} names in {storage}", advice)
    yield from broken
    present = local_bases()
    for base, adapter in sorted(wanted.items()):
        if base not in present and not base.startswith("debug") and not Path(base).is_dir():
            yield Finding(f"base {base}", "warning", f"{adapter} needs it, it is not here", f"kauli fetch {base}")


def _remove(name: str, number: int) -> str:
    return f"publish it again, or remove it: kauli adapters remove {name}@{number}"


def _port(storage: str) -> Iterator[Finding]:
    from kauli.serving.settings import load_settings

    try:
        args = load_settings(storage=storage)
    except UsageError as error:
        yield Finding("settings", "problem", str(error), "correct the KAULI_* variable")
        return
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except OSError as error:
            advice = "stop it, or serve on another port: kauli serve --port N"
            yield Finding("port", "warning", f"{args.host}:{args.port}: {error.strerror}, {_owner(args.port)}", advice)
        else:
            yield Finding("port", "ok", f"{args.host}:{args.port} is free")


def _owner(port: int) -> str:
    import psutil

    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and getattr(one.laddr, "port", None) == port and one.pid:
                return f"by process {one.pid} ({psutil.Process(one.pid).name()})"
    except psutil.Error:
        pass
    return "by a process of another user or container"


def _ray(storage: str) -> Iterator[Finding]:
    import psutil

    running = [one for one in psutil.process_iter(["name"]) if one.info["name"] in ("raylet", "gcs_server")]
    # As ray._common.utils.get_default_system_temp_dir has it
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    address = _text(folder / "ray_current_cluster").strip()
    if running:
        found = f"a cluster runs on this machine{f' ({address})' if address else ''}"
        yield Finding("ray", "ok", found, f"kauli starts its own beside it; {_JOIN}")
    else:
        yield Finding("ray", "ok", "no cluster runs here: kauli starts one where it needs one")
    if names := sorted(name for name in os.environ if name.startswith("RAY_")):
        yield Finding("ray variables", "warning", ", ".join(names), f"unset those that you did not choose; {_JOIN}")
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").free
        advice = "Ray would use the disk in its place: docker run --shm-size=1g" if size < _LEAST_SHARED else None
        yield Finding("/dev/shm", "warning" if advice else "ok", f"{_size(size)} free", advice)


def _network(storage: str) -> Iterator[Finding]:
    proxies = {name.lower(): value for name, value in os.environ.items() if name.lower().endswith("_proxy") and value}
    own = {"127.0.0.1", "localhost", "*"}
    excluded = {one.strip() for one in proxies.pop("no_proxy", "").split(",")}
    hosts = sorted(f"{name} {urlsplit(value).hostname or 'unreadable'}" for name, value in proxies.items())
    if hosts and not own & excluded:
        advice = "clients would ask it for the service on this machine: export NO_PROXY=127.0.0.1,localhost"
        yield Finding("proxy", "warning", ", ".join(hosts), advice)
    else:
        yield Finding("proxy", "ok", ", ".join(hosts) or "none")


def _limits(storage: str) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < _FEW_FILES
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    advice = f"ulimit -n {min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536}" if few else None
    yield Finding("open files", "warning" if few else "ok", shown, advice)
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    advice = None if encoding == "utf8" else "letters of many languages can't be printed: export PYTHONUTF8=1"
    yield Finding("encoding", "warning" if advice else "ok", sys.stdout.encoding or "unknown", advice)


CHECKS: Iterable[Callable[[str], Iterator[Finding]]] = (
    _versions, _speech, _processor, _memory, _gpu, _places, _bases, _adapters, _port, _ray, _network, _limits,
)  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _level(amount: int, least: int, few: int) -> Literal["ok", "warning", "problem"]:
    return "problem" if amount < least else "warning" if amount < few else "ok"


def _text(path: str | Path) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _used(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.0f} MiB"
