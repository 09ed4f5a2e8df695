"""A worker of ``--engine ray``: it builds data and backbone once, as the coordinator has, and answers for them.

Ray's processes get :func:`answer` by its name and import this module: what is cached here is each process's own, and lives as
long as the process.
"""

from __future__ import annotations

import functools
import json
import platform
import tomllib
from dataclasses import replace
from typing import Any

import torch

from weft import __version__
from weft import experiment as settings
from weft.communication.codecs import codec
from weft.communication.envelope import unwrap
from weft.communication.strict import write_json
from weft.engines.observer import Observer
from weft.engines.scattered import Worker, failed
from weft.errors import UserError
from weft.experiment import Resolved
from weft.experiment.hidden import chain_of
from weft.runs import baselines
from weft.runs.prepare import Material, prepare


def head(text: str, material: Material, stage: str, threads: int, cache: int) -> dict[str, Any]:
    """What a worker has to know of a run beside the pack.

    Args:
        text: the run's experiment file, with nothing left open. stage: ``setup`` or ``rounds``. cache: bytes of its prefix cache.
    """
    identity = {n: v for n, v in material.identity().items() if n != "public"}  # rows of the server alone
    about = {"experiment": text, "threads": threads, "cache": cache, "identity": identity, "version": __version__}
    return {"run": about, "stage": stage}


def answer(raw: bytes) -> bytes:
    """Train the pack of a question, under a :func:`head`."""
    try:
        about, question = unwrap(raw)
        worker = _worker(write_json(about["run"]).decode(), about["stage"])
        return worker.answer(question)
    except Exception as e:  # told to whoever plays the rounds, where it is raised
        return failed(e)


@functools.lru_cache(maxsize=2)
def _worker(run: str, stage: str) -> Worker:
    resolved, material = _built(run)
    x = resolved.experiment
    method = baselines.probe(x) if stage == "setup" else resolved.played
    return Worker(method, material.bench, material.clients, codec(x.codec))


@functools.lru_cache(maxsize=1)  # one at a time: a backbone fills the memory
def _built(run: str) -> tuple[Resolved, Material]:
    """
    Raises:
        UserError: this machine has other data, weights or another version of Weft.
    """
    about = json.loads(run)
    if about["version"] != __version__:
        raise UserError(f"a worker on {platform.node()} has Weft {__version__}, and not {about['version']}: install the same.")
    torch.set_num_threads(about["threads"])
    resolved = settings.resolve({}, tomllib.loads(about["experiment"]))
    # Ray shows a worker its own GPU alone, which is its first; public rows are the server's
    here = {"device": resolved.experiment.device.split(":")[0], "public": None}
    resolved = replace(resolved, experiment=resolved.experiment.model_copy(update=here))
    x = resolved.experiment
    material = prepare(x, None, Observer(), resolved.method.info.needs).under(chain_of(x))
    for bench in (material.bench, *material.bench.others.values()):
        if bench.prefix is not None:
            bench.prefix.memory = about["cache"]
    mine = material.identity()
    if odd := [n for n, v in about["identity"].items() if mine.get(n) != v]:
        raise UserError(
            f"a worker on {platform.node()} has other {' and '.join(odd)} than the coordinator: the same files have to be there."
        )
    return resolved, material
