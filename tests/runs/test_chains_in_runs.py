"""A codec chain is a text: in files, when a run goes on, and at sites and workers, which make the same codec of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import tiny
import toy_runs
import weft
from every_method import small
from weft import experiment as settings
from weft.errors import Interrupted, UserError
from weft.runs.checkpoint import digest, without_times
from weft.testing.compare import assert_same, state
from weft.testing.sites import remote
from weft.testing.workers import scattered

CHAIN = "topk:share=0.2+qsgd:levels=3,bucket=64+entropy"
TEXTS = (CHAIN, "randk:share=0.25,common=true", "adaptive:bits=3+entropy", "nf4:block=16", "sign")


@pytest.fixture
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


class Stop(weft.Observer):
    def round_done(self, record: dict[str, object]) -> None:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("_light")
@pytest.mark.parametrize("text", TEXTS)
def test_a_chain_stands_in_the_experiments_file_as_typed_and_the_run_goes_on_with_it(text: str, tmp_path: Path) -> None:
    whole = toy_runs.run(tmp_path / "whole", codec=text)
    assert whole.summary["settings"]["codec"]["value"] == text
    assert settings.resolve({}, tomllib.loads((whole.folder / "experiment.toml").read_text())).experiment.codec == text
    with pytest.raises(Interrupted):
        toy_runs.run(tmp_path / "cut", codec=text, observer=Stop())
    (cut,) = (tmp_path / "cut").iterdir()
    again = weft.resume(cut, data=toy_runs.source())
    assert digest(whole.folder) == digest(again.folder)
    assert [without_times(line) for line in whole.rounds] == [without_times(line) for line in again.rounds]
    plain = toy_runs.run(tmp_path / "plain")
    assert whole.summary["bytes"] != plain.summary["bytes"]


@pytest.mark.usefixtures("_light")
@pytest.mark.parametrize(
    ("text", "says"),
    [("qsgd:levels=0", "it needs 1 ≤ levels ≤ 32767, not 0"), ("quant8+topk", "is a codec chain that can't be decoded")],
)
def test_a_chain_that_is_wrong_is_refused_before_anything_is_made(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        toy_runs.run(tmp_path, codec=text)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", TEXTS)
def test_sites_and_workers_make_the_same_codec_of_it(text: str) -> None:
    here = tiny.federation(small("fedit"), pack=1, rounds=2, codec_name=text).run()
    away, _ = remote(small("fedit"), text, rounds=2)
    apart, _ = scattered(small("fedit"), uplink=text, pack=1, rounds=2)
    for other in (away.run(), apart.run()):
        assert_same(state(here), state(other), 0.0)
        books = [run.simulation.setup.exchange.ledger.totals(direction="up") for run in (here, other)]
        assert books[0].parts == books[1].parts
