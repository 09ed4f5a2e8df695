"""A codec's text: what it may say, what it stands for, and what is said of one that is wrong."""

from __future__ import annotations

from dataclasses import fields

import pytest

from codec_texts import TEXTS
from weft.communication.codecs import CODECS, ENDS, NF4, QSGD, Entropy, Quant8, RandK, TopK, codec
from weft.communication.codecs.chain import Joined
from weft.errors import UserError


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_names_all_settings_and_gives_the_same_codec_again(text: str) -> None:
    made = codec(text)
    assert codec(made.text) == made
    assert codec(made.text).text == made.text
    for stage in getattr(made, "stages", (made,)):
        assert all(f"{f.name}=" in made.text for f in fields(stage))


def test_settings_are_read_and_what_is_not_given_keeps_its_default() -> None:
    assert codec("qsgd") == QSGD(7, 512, "max")
    assert codec("qsgd:levels=3") == QSGD(3, 512, "max")
    assert codec(" qsgd : norm = l2 , levels=15") == QSGD(15, 512, "l2")
    assert codec("randk:common=true,share=1e-2") == RandK(0.01, True)
    chain = codec("topk:share=0.01+nf4:block=32+entropy")
    assert chain == Joined((TopK(0.01), NF4(32), Entropy()))
    assert chain.text == "topk:share=0.01+nf4:block=32+entropy"
    assert codec("qsgd:levels=7+entropy").text == "qsgd:levels=7,bucket=512,norm=max+entropy"
    assert codec("randk").text == "randk:share=0.1,common=false"
    assert codec("quant8") == Quant8()
    assert codec("quant8").text == "quant8"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qsdg", 'There is no codec "qsdg"; .*Did you mean "qsgd"'),
        ("topk+qaunt8", 'There is no codec "qaunt8"; .*Did you mean "quant8"'),
        ("topk+", 'There is no codec ""'),
        ("", 'There is no codec ""'),
        ("QSGD", 'There is no codec "QSGD"'),
        ("qsgd:levls=3", r'codec "qsgd": there is no setting "levls" \(did you mean "levels"\?\)'),
        ("qsgd:zzz=3", 'codec "qsgd": there is no setting "zzz"; it has levels, bucket, norm'),
        ("quant8:levels=3", 'codec "quant8": there is no setting "levels"; it has none'),
        ("qsgd:levels=0", 'codec "qsgd": it needs 1 ≤ levels ≤ 32767, not 0'),
        ("qsgd:levels=40000", "it needs 1 ≤ levels ≤ 32767, not 40000"),
        ("qsgd:levels=7.5", "setting \"levels\" must be a whole number, not '7.5'"),
        ("qsgd:levels=true", 'setting "levels" must be a whole number'),
        ("qsgd:bucket=0", "it needs 1 ≤ bucket ≤ 1048576, not 0"),
        ("qsgd:bucket=99999999999999999999", "it needs 1 ≤ bucket ≤ 1048576"),
        ("qsgd:norm=L2", 'codec "qsgd": unknown norm "L2": use max, l2. Did you mean "l2"'),
        ("qsgd:levels", '"levels" is no setting: write name=value'),
        ("qsgd:levels=3,", '"" is no setting'),
        ("qsgd:levels=3,levels=4", "levels is given twice"),
        ("qsgd:levels=0,bucket=0", "levels.*; it needs 1 ≤ bucket"),
        ("topk:share=0", "it needs 0 < share ≤ 1, not 0"),
        ("topk:share=1.5", "it needs 0 < share ≤ 1, not 1.5"),
        ("topk:share=nan", "must be a number"),
        ("half:format=fp8", 'unknown format "fp8"'),
        ("nnadq:weight=0", "0 < weight ≤ 1"),
        ("adaptive:bits=1", "2 ≤ bits ≤ 12"),
        ("randk:common=maybe", "must be true or false"),
    ],
)
def test_a_wrong_name_or_setting_is_said_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        codec(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quant8+topk", "one sparsifier, one"),
        ("qsgd+entropy+qsgd", "one sparsifier, one"),
        ("topk+randk", "one sparsifier"),
        ("qsgd+quant8", "one quantiser"),
        ("qsgd+entropy+entropy", "one entropy coder"),
        ("entropy+qsgd", "in this order"),
        ("entropy", r"entropy codes the levels of a quantiser, .* qsgd\+entropy"),
        ("topk+entropy", "entropy codes the levels of a quantiser"),
        ("half+entropy", "entropy codes the levels of a quantiser"),
        ("identity+quant8", "identity stands alone"),
        ("shift", r"put a codec behind it, as in shift\+topk"),
        ("topk+shift", "in this order"),
        ("shift+shift+topk", "at most one shift"),
        ("shift+identity", "identity stands alone"),
        ("shift+entropy", "entropy codes the levels of a quantiser"),
        ("topk+identity", "identity stands alone"),
    ],
)
def test_a_chain_that_nothing_could_decode_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=rf'"{text.replace("+", "[+]")}" is a codec chain that can\'t be decoded: .*{says}'):
        codec(text)


def test_a_step_of_shifts_that_needs_an_unbiased_codec_says_so() -> None:
    with pytest.raises(UserError, match="shift:step=soteriafl is for codecs that are right on average"):
        codec("shift:step=soteriafl+sign")
    assert codec("shift:step=diana+sign").alpha(9) == 1.0


def test_settings_are_compared_in_python_too() -> None:
    with pytest.raises(UserError, match="QSGD: it needs 1 ≤ levels ≤ 32767, not 0"):
        QSGD(0)
    with pytest.raises(UserError, match="must be true or false"):
        RandK(common=1)  # type: ignore[arg-type]


def test_the_texts_of_the_tests_name_every_codec_there_is() -> None:
    said = {stage.partition(":")[0] for text in TEXTS for stage in text.split("+")}
    assert said == {*CODECS, *ENDS}
