"""What every test may count on: no network, one thread, a fixed seed, and fast thrown-away folders."""

from __future__ import annotations

import fcntl
import functools
import gc
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# Before transformers and datasets are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# threads that read the tensors of a tiny checkpoint take longer to start
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

import jinja2
import pytest
import torch

from tests import cases, grids
from tests.cases import refuses_bf16

if TYPE_CHECKING:
    from tests.hub_server import Hub

pytest.register_assert_rewrite("tests.modeling.encoder_decoder_contract")

ROOT = Path(__file__).resolve().parent.parent
importlib.metadata.version = functools.cache(importlib.metadata.version)  # every report and every card reads several


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--case",
        default="",
        help="only the cases of tables and the tests with one of these words, a,b,c, in their names",
    )


def pytest_configure(config: pytest.Config) -> None:
    grids.ONLY_QUICK = "not slow" in config.option.markexpr
    cases.ONLY[:] = [word for word in config.option.case.split(",") if word]
    gc.set_threshold(20_000, 20, 20)  # by default a model alone makes tens of collections


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cases.ONLY:
        items[:] = filter(cases.asked_for, items)


def pytest_collection_finish() -> None:
    keep_what_stays()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        keep_what_stays()


def keep_what_stays() -> None:
    """Modules, collected tests and compiled graphs stay until the end: garbage collections leave out what has survived
    a file.

    Over all that a worker has imported and compiled by then, they would take most of its time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """Skip a test that meets the refusal of bf16 on a processor that has none, with that reason."""
    from hf_longattn.errors import BackendError

    try:
        return (yield)
    except BackendError as refusal:
        if not refuses_bf16(refusal):
            raise
        pytest.skip(str(refusal))


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """pytest's, which gets each message of transformers' logger once: the logger does not propagate, unless ``CI`` is
    set, and pytest 9.2 adds its handler to such loggers itself."""
    from transformers.utils import logging

    library, handler = logging.get_logger(), caplog.handler
    monkeypatch.setattr(library, "propagate", False)
    if handler not in library.handlers:
        monkeypatch.setattr(library, "handlers", [*library.handlers, handler])
    return caplog


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _only_the_cpu_is_seeded() -> Iterator[None]:
    """Where there is no accelerator, torch stores three stack traces for each seeding, in case one is used later."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.accelerator.is_available():
            for backend in (torch.cuda, torch.mtia, torch.xpu):
                patch.setattr(backend, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _trainings_without_collections() -> Iterator[None]:
    """A training frees the memory of devices by a full garbage collection: a quarter of the time of a tiny one, and
    here is no device."""
    from accelerate.utils import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_drawn_for_the_meta_device() -> Iterator[None]:
    """Loading a checkpoint builds its model on the meta device, where the first values of layers are a sixth of the
    time and no values."""

    def with_values(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda tensor, *args, **kwargs: tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_", "kaiming_uniform_"):
            patch.setattr(torch.nn.init, name, with_values(getattr(torch.nn.init, name)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes need not outlast a power failure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _card_templates_are_compiled_once() -> Iterator[None]:
    """A card is filled from a text that jinja2 compiles, which takes ten times as long as the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
        yield


@pytest.fixture
def families_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model types in ``tests.unsupported.HIDDEN`` have no family."""
    from hf_longattn.modeling.family.definition import FAMILIES
    from tests.unsupported import HIDDEN

    monkeypatch.setattr(FAMILIES, "_names", [name for name in FAMILIES if name not in HIDDEN])


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mechanisms registered by this test are forgotten after it."""
    from hf_longattn.mechanisms.common import registry

    registry.list_mechanisms()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """hub(endpoint) sends this test's Hub calls there, with an empty cache, without a token, and without waiting
    between attempts."""
    from huggingface_hub import constants

    def use(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)

    return use


@pytest.fixture
def server(hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on loopback, to which this test's calls go with the token of a user who may write."""
    import transformers

    from tests.hub_server import WRITER, Hub, serve

    with serve(Hub()) as running:
        hub(running.endpoint)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        yield running
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """The folder of all-MiniLM-L6-v2: do not write into it."""
    from scripts.dev.real import real_checkpoint

    return real_checkpoint()


@pytest.fixture(scope="session")
def real_long(real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, converted to 1,024 tokens with longformer and verified, which nothing changes; made once for all
    workers."""
    from hf_longattn import convert_checkpoint

    def convert(folder: Path) -> list[Path]:
        convert_checkpoint(real_folder, folder / "long", mechanism="longformer", max_length=1024)
        return [folder / "long"]

    (long,) = made_once(tmp_path_factory, "real", convert)
    return long


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Iterable[Path]]
) -> list[Path]:
    """The paths that ``make(folder)`` returns; the first worker that asks calls it, in a folder of this name."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose folders lie in that of the run
        place = place.parent
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = place / f"{name}.json"
        if not done.exists():
            (place / name).mkdir()
            done.write_text(json.dumps([str(path) for path in make(place / name)]), encoding="utf-8")
        return [Path(path) for path in json.loads(done.read_text(encoding="utf-8"))]


@functools.cache
def first_result(module: str, name: str) -> Callable[..., Any]:
    """The function of a module, which computes its result for the same arguments once."""
    return functools.cache(getattr(sys.modules[module], name))


@pytest.fixture(autouse=True)
def _made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes, which are read for every help text."""
    if (recipes := sys.modules.get("hf_longattn.training.recipes")) is not None:
        monkeypatch.setattr(recipes, "ready_recipes", first_result(recipes.__name__, "ready_recipes"))


@pytest.fixture(autouse=True)
def _no_fingerprints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time of a tiny training is names of cached tables, hashed from their functions; here every table
    has a new one."""
    if "datasets.arrow_dataset" in sys.modules:
        from datasets import arrow_dataset, fingerprint

        for module in (arrow_dataset, fingerprint):
            monkeypatch.setattr(module, "update_fingerprint", lambda *_: fingerprint.generate_random_fingerprint())
