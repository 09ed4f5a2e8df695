"""``weft keys`` as people type it, for which the package ``cryptography`` is needed (extra ``flower``)."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from command_line import flowing, refused, weft
from patience import patience
from weft.errors import UserError
from weft.sites import keys

Capture = pytest.CaptureFixture[str]


def test_weft_keys_coordinator_says_what_each_file_is_and_what_goes_to_the_sites(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got = weft(capsys, "keys", "coordinator", "--host", "fl.example.org", "--host", "10.0.0.7", "--days", 30)
    assert (got.code, got.err) == (0, "")
    text = flowing(got.out)
    until = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    assert f"certificate of the coordinator, until {until}, for fl.example.org, 10.0.0.7, localhost, 127.0.0.1" in text
    assert "keys/ca.pem certificate of the authority: this file, and no other, goes to every site" in text
    assert [n for n in ("keys/ca.key", "keys/server.key", "keys/server.pem", "keys/sites") if n not in text] == []
    assert keys.fingerprint(Path("keys/ca.pem")) in got.out.splitlines()
    assert "by telephone" in text
    assert keys.find(Path("keys")).sites.is_dir()

    again = weft(capsys, "keys", "coordinator", "--renew", "--host", "new.example.org", "--days", 90)
    assert again.code == 0
    assert "for new.example.org, localhost, 127.0.0.1" in flowing(again.out)
    assert "the sites need nothing new" in again.out


def test_a_fingerprint_is_printed_as_it_is(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = ":".join(f"{byte:02X}" for byte in range(256))  # some of them name a picture
    monkeypatch.setattr(keys, "fingerprint", lambda path: every)
    got = weft(capsys, "keys", "coordinator", "--host", "a", "--folder", tmp_path / "keys")
    assert every in got.out.splitlines()


def test_weft_keys_site_says_which_file_stays_and_which_goes(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    got = weft(capsys, "keys", "site", "hospital-a")
    assert (got.code, got.err) == (0, "")
    text = flowing(got.out)
    assert "keys/hospital-a.key private key of this site: stays here" in text
    assert "keys/hospital-a.pub public key: goes to the coordinator" in text
    assert sorted(p.name for p in Path("keys").iterdir()) == ["hospital-a.key", "hospital-a.pub"]
    refused(weft(capsys, "keys", "site", "hospital-a"), "hospital-a.key is there already")


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("keys sit", ('"sit"', 'Did you mean "site"?')),
        ("keys site", ("NAME",)),
        ("keys site a/b", ('"a/b"', "at most 64")),
        ("keys coordinator", ("--host fl.example.org",)),
        ("keys coordinator --host a:9092", ('"a:9092"', "port")),
        ("keys coordinator --host a --days 0", ("0 days", "1 to 3650")),
        ("keys coordinator --host a --days many", ("--days", "many")),
        ("keys coordinator --renew", ("ca.key", "ca.pem")),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    line: str, fragments: tuple[str, ...], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(weft(capsys, *line.split()), *fragments)
    assert list(tmp_path.iterdir()) == []


def test_without_cryptography_it_says_what_to_install(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for line in ("keys coordinator --host a", "keys site a"):
        refused(weft(capsys, *line.split()), "cryptography", "'.[flower]'")
    for call in (keys.find, keys.public_keys, keys.fingerprint, keys.certified, keys.certificate):
        with pytest.raises(UserError, match=r"pip install .* '\.\[flower\]'"):
            call(tmp_path / "ca.pem")


def test_help_on_keys_needs_no_cryptography() -> None:
    script = (
        "import sys\nfrom weft.cli import main\nimport weft.sites.keys\n"
        "try:\n    main(['keys', '--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "sys.exit(', '.join({'cryptography', 'flwr'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patience(30))
    assert done.returncode == 0, done.stderr
    assert "coordinator" in done.stdout
