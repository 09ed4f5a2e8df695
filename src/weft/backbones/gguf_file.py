"""A package's GGUF file as an ordinary Hugging Face folder: converted once, into a cache, and found there from then on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from weft import distribution
from weft.backbones.reading import reason
from weft.backbones.short_names import Known
from weft.errors import UserError

FORMAT = 1  # of a converted folder: to be raised with whatever changes its weights or its tokens
ABOUT, WEIGHTS = "weft-conversion.json", "model.safetensors"
ABANDONED = 3600.0  # seconds after which an unfinished folder is that of a process that was killed
FULL = (errno.ENOSPC, errno.EDQUOT)

# Half the size of float32, and the type that SmolLM2 was trained and published in: who computes in bfloat16 gets the same numbers
# from both. A weight moves by 0.4 % at most and 0.14 % in the mean square, where 4 bits have moved it by 8 % already, and the
# loss of five sentences by 0.0015 of 2.34. float16 is nearer (0.02 %), but transformers computes in the type of the file where
# nobody names one, and the residual stream of SmolLM2 reaches 25 000, where float16 ends at 65 504.
STORED = torch.bfloat16


@dataclass(frozen=True)
class Made:
    """The account of a conversion, in the folder that it made.

    Attributes:
        name: short name. package: that carried the file. source: sha256 of the file. sha256: of the converted weights.
        files: what the folder holds beside this account. folder: where that is.
    """

    name: str
    package: str
    source: str
    sha256: str
    files: tuple[str, ...]
    folder: Path

    @property
    def note(self) -> str:
        return (
            f'the weights of "{self.name}" are the rounded ones of package {self.package}, not those on the hub: '
            "what is trained on top of them belongs to no others."
        )

    def check(self, digest: str) -> None:
        """Compare the weights' hash with what was written.

        Raises:
            UserError: they have changed since.
        """
        if digest != self.sha256:
            raise UserError(f'{self.folder} is damaged: remove that folder, and "{self.name}" is converted anew.')


def cache() -> Path:
    """Folder for what can be made anew: ``$WEFT_CACHE``, else ``$XDG_CACHE_HOME/weft``, else ``~/.cache/weft``.

    Raises:
        UserError: there is no home folder either.
    """
    own, common = os.environ.get("WEFT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(own) if own else Path(common or "~/.cache") / "weft").expanduser().absolute()
    except RuntimeError as e:
        raise UserError("there is no home folder for a cache: name a place in the environment variable WEFT_CACHE.") from e


def made(folder: Path) -> Made | None:
    """The account of a whole converted folder; None for any other folder."""
    try:
        about = json.loads((folder / ABOUT).read_bytes())
        found = Made(**(about | {"files": tuple(about["files"]), "folder": folder}))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all((folder / name).is_file() for name in found.files) else None


def converted(file: Path, known: Known, say: Callable[[str], None] | None = None) -> Path:
    """The folder for a GGUF file, made now unless it was made before.

    It has its name only when it is whole, so that neither a killed process nor a second one at the same time leaves half of one.

    Args:
        known: whose weights they are. say: is told that it takes a while.

    Raises:
        UserError: a damaged file, no package to read it with, or no place to write to.
    """
    folder = cache() / f"{known.name}-{(known.sha256 or '')[:12]}-{FORMAT}"
    if made(folder) is not None:
        return folder
    if find_spec("gguf") is None:
        raise UserError(
            f'the weights of "{known.name}" are a GGUF file, and the package that reads it is not installed: '
            f"{distribution.install('language')}."
        )
    temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        if (digest := _sha256(file) if file.is_file() else "none") != known.sha256:
            raise known.damaged(digest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        if say is not None:
            say(f'Converting the weights of "{known.name}" into {folder}, once: this takes about a minute.')
        _write(file, temporary)
        _describe(known, temporary)
        _name(temporary, folder)
    except UserError:
        raise
    except Exception as e:  # whatever transformers and the libraries below it make of a file and of a disk
        raise _said(e, known, folder) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _sha256(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed conversions have left, and a folder of this name that is no longer whole."""
    for other in folder.parent.glob(f".{folder.name}-*"):
        with contextlib.suppress(OSError):  # it may just have got its name
            if time.time() - other.stat().st_mtime > ABANDONED:
                shutil.rmtree(other, ignore_errors=True)
    if folder.is_dir() and made(folder) is None:
        shutil.rmtree(folder)


def _write(file: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how: dict[str, Any] = {"gguf_file": file.name, "dtype": torch.float32, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # newer releases leave weights packed where they have a kernel for that
        how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _quiet(), torch.random.fork_rng(devices=[]):
        both: Any = AutoModelForCausalLM.from_pretrained(file.parent, **how)
        read, info = both
        if lost := sorted(info["missing_keys"]):
            raise ValueError(f"transformers {transformers.__version__} finds no {lost[0]} in it")
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=STORED)  # what was read from a GGUF file refuses to be saved
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _split_as_trained(tokenizer, file)
        tokenizer.model_max_length = config.max_position_embeddings  # the file has no other
        for name in ("is_local", "local_files_only"):  # how it was read is no part of it
            tokenizer.init_kwargs.pop(name, None)
        tokenizer.save_pretrained(folder)
    # safetensors keeps its files from others; this one is no secret where the rest is none
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)


def _split_as_trained(tokenizer: Any, file: Path) -> None:
    """Cut digits apart before anything else where the file wants that ("smollm"), which transformers 5.23 does not know.

    Else blanks before a number are other tokens than in training.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    kind = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _describe(known: Known, folder: Path) -> None:
    names = tuple(sorted(file.name for file in folder.iterdir()))
    about = Made(known.name, known.package or "", known.sha256 or "", _sha256(folder / WEIGHTS), names, folder)
    content = {name: value for name, value in asdict(about).items() if name != "folder"}
    (folder / ABOUT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _name(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster."""
    for file in temporary.iterdir():
        with open(file, "rb+") as f:
            os.fsync(f.fileno())
    try:
        os.rename(temporary, folder)
    except OSError:
        if made(folder) is None:
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor advice of transformers: they would run into the lines of a run."""
    from transformers import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # one of its bars asks nobody
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _said(e: Exception, known: Known, folder: Path) -> UserError:
    """What went wrong, as a sentence."""
    code, place = e.errno if isinstance(e, OSError) else None, "name another place in the environment variable WEFT_CACHE"
    if code in FULL or any(f"(os error {number})" in str(e) for number in FULL):  # of the libraries written in Rust
        return UserError(
            f'the disk is too full to convert the weights of "{known.name}" into {folder}: free some space there, or {place}.'
        )
    if isinstance(e, OSError) and code is not None:
        why = (e.strerror or str(e)).lower()
        return UserError(f'the weights of "{known.name}" can\'t be converted into {folder} ({why}): {place}.')
    why = reason(e).rstrip(".")
    return UserError(f'the GGUF file of "{known.name}" in package {known.package} could not be converted: {why}.')
