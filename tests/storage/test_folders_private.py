"""What is personal lies where no other user of the machine may enter, and a sentence on how to go on names the right command."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import toy_runs
import weft
from every_method import small
from machines import Machines, coordinate
from toy_runs import Dies, Killed
from weft.cli.errors import about_file
from weft.errors import UserError
from weft.storage import files, remedy
from weft.testing.sites import remote


@pytest.fixture(autouse=True)
def _open_to_all() -> Iterator[None]:
    """As most machines have it: what is made is readable by everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def open_to_others(folder: Path) -> list[Path]:
    """Files and folders within that another user could enter or read, were the folder itself open."""
    return [p for p in (folder, *folder.rglob("*")) if mode(p) & 0o077]


def test_all_that_a_site_keeps_is_its_own(machines: Machines) -> None:
    machines.join("north")
    machines.join("south")
    run = coordinate(machines, method="fedsa-lora")
    for name in ("north", "south"):
        folder = machines.root / "sites" / name
        assert mode(folder) == 0o700
        assert list(folder.rglob("*.safetensors"))
        assert open_to_others(folder) == []
    assert open_to_others(run.folder / "checkpoint") == []
    assert mode(run.folder / "summary.json") == 0o644  # nothing personal


def test_a_folder_that_a_person_made_stays_as_it_is_and_what_is_put_into_it_is_hidden(machines: Machines) -> None:
    mine = machines.root / "mine"
    mine.mkdir()
    machines.join("north", folder=str(mine))
    machines.join("south")
    run = coordinate(machines).summary["served"]["run"]
    assert mode(mine) == 0o755
    assert open_to_others(mine / run) == []


def test_personal_parts_of_a_site_and_of_a_simulation_are_hidden_also_where_an_earlier_version_left_them_open(
    tmp_path: Path,
) -> None:
    run, loop = remote(small("fedsa-lora"), rounds=1)
    run.run()
    for site in loop.sites.values():
        assert open_to_others(site.folder) == []
    folder = next(iter(loop.sites.values())).folder
    folder.chmod(0o755)
    loop.start()
    assert mode(folder) == 0o700


@pytest.mark.usefixtures("_light")
def test_personal_parts_in_the_folder_of_a_run_are_hidden(tmp_path: Path) -> None:
    run = toy_runs.run(tmp_path, method="fedsa-lora")
    assert list((run.folder / "clients").iterdir())
    assert open_to_others(run.folder / "clients") == []
    assert open_to_others(run.folder / "checkpoint") == []


@pytest.fixture
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_runs.light(monkeypatch)


# how to go on -----------------------------------------------------------------------------------------------------------


def full_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def point(operation: str, path: Path) -> None:
        if operation == "write" and path.name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "point", point)


FULL = "the disk is full; what was saved before is intact: free some space, and "


@pytest.mark.usefixtures("_light")
@pytest.mark.parametrize("file", ["summary.json", "experiment.toml"])
def test_a_disk_that_is_full_at_the_very_start_leaves_no_folder(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_at(monkeypatch, file)
    with pytest.raises(UserError) as e:
        toy_runs.run(tmp_path)
    assert f"{FULL}type the same command again." in str(e.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_light")
def test_a_run_whose_disk_is_full_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_at(monkeypatch, "state.json")
    with pytest.raises(UserError) as e:
        toy_runs.run(tmp_path, name="mine", start_head="probe", probe_rounds=1)
    assert f"{tmp_path}/mine/setup/checkpoint/state.json" in str(e.value)
    assert f"{FULL}weft resume {tmp_path}/mine goes on." in str(e.value)


def test_a_federation_whose_disk_is_full_is_served_again(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.join("north")
    machines.join("south")
    full_at(monkeypatch, "state.json")
    with pytest.raises(UserError) as e:
        coordinate(machines)
    assert f"{FULL}weft serve with the same experiment file goes on." in str(e.value)
    root = machines.root / "runs" / "run"
    said = about_file(OSError(errno.ENOSPC, "", str(root / "adapter" / "x")))
    assert said is not None
    assert "weft serve with the same experiment file goes on" in said
    with pytest.raises(UserError, match="weft serve with the same experiment file goes on with it"):
        weft.resume(root)
    with pytest.raises(UserError, match="finish it with weft serve with the same experiment file"):
        weft.export.predict(root, ["a text"])
    with pytest.raises(UserError, match="or continue it with weft serve with the same experiment file"):
        toy_runs.run(machines.root / "runs", name="run")


def test_a_site_whose_disk_is_full_goes_on_by_itself(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.join("north")
    machines.join("south")
    full_at(monkeypatch, "site.json")
    with pytest.raises(Killed):
        coordinate(machines, Dies())
    assert any(f"{FULL}the next message finds this site as it was." in s for s in machines.said["at north"])


def test_a_run_or_site_that_is_damaged_is_begun_anew_by_the_command_that_began_it(tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoint" / "state.json"
    file.parent.mkdir(parents=True)
    assert remedy.go_on(file) == "type the same command again"
    (tmp_path / "run" / "experiment.toml").write_text("")
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert remedy.go_on(file) == f"weft resume {tmp_path}/run goes on"
    assert f"start it anew with weft run {tmp_path}/run/experiment.toml" in remedy.anew(file)
    (tmp_path / "run" / "summary.json").write_text('{"served": {}}')
    assert remedy.go_on(tmp_path / "run") == "weft serve with the same experiment file goes on"
    assert "serve the same experiment anew with another --name" in remedy.anew(file)
    site = tmp_path / "run" / "sites" / "c0" / "0" / "rounds"  # on one machine a site lies within a run
    site.mkdir(parents=True)
    (site.parent / "agreed.json").write_text("")
    assert remedy.go_on(site / "clients" / "x") == "the next message finds this site as it was"
    assert "this site joins anew" in remedy.anew(site / "site.json")
