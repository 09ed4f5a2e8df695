"""A method with a rule over it: a class made of both, and what can't be made."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from weft.errors import UserError, WeftError, nearest

if TYPE_CHECKING:
    from weft.federation.method import Method
    from weft.rules.over import Over

RULES = ("scaffold", "feddyn", "mime", "mimelite")


def mixin(word: str) -> type[Over]:
    """The class of a rule.

    Raises:
        UserError: there is none of that name.
    """
    from weft.rules.feddyn import FedDyn
    from weft.rules.mime import Mime, MimeLite
    from weft.rules.scaffold import Scaffold

    known: Mapping[str, type[Over]] = {r.word: r for r in (Scaffold, FedDyn, Mime, MimeLite)}
    if word not in known:
        raise UserError(f'there is no rule "{word}" over methods: use {", ".join(known)}.{nearest(word, known)}')
    return known[word]


def composed(method: Method, word: str, **settings: Any) -> Method:
    """The method with a rule over it: ``composed(FedIT(rank=8), "scaffold")``. Its slug says so, ``fedit+scaffold``.

    Args:
        settings: of the rule, as ``feddyn_alpha=0.1``.

    Raises:
        UserError: there is no such rule, or it makes no sense over this method.
    """
    rule, cls = mixin(word), type(method)
    check(method, word)
    pair: tuple[Any, Any] = rule, cls
    made: Method = _made(*pair)(**{f.name: getattr(method, f.name) for f in fields(method)}, **settings)
    return made


def plain(method: Method) -> Method:
    """The method without a rule over it."""
    return beneath(method, "_without_rule")


def beneath(method: Method, attribute: str) -> Method:
    """The method without the mix-in whose classes have this attribute, the class beneath it; itself if it has none."""
    base = getattr(type(method), attribute, None)
    if base is None:
        return method
    made: Method = base(**{f.name: getattr(method, f.name) for f in fields(base)})
    return made


@functools.cache
def _made(rule: Any, cls: Any) -> Any:
    from weft.federation.method import Method

    mixins = [c for c in rule.__mro__ if c.__module__.startswith("weft.rules.")]
    own = {n for c in mixins for n in vars(c) if not n.startswith("_")} - set(dir(Method))
    if clash := sorted(own & (set(dir(cls)) | {f.name for f in fields(cls)})):
        raise WeftError(f"{cls.__name__}.{clash[0]} is what the rule {rule.word} calls something of its own")
    card = replace(
        cls.info,
        slug=f"{cls.info.slug}+{rule.word}",
        tells=(*cls.info.tells, *rule.tells),
        sends="; ".join(filter(None, (cls.info.sends, rule.sends))),
    )
    body = {"info": card, "_without_rule": cls, "__module__": rule.__module__, "__doc__": cls.__doc__}
    return type(f"{rule.__name__}Over{cls.__name__}", (rule, cls), body)


def check(method: Method, word: str) -> None:
    """
    Raises:
        UserError: the rule makes no sense over this method.
    """
    slug = method.info.slug
    if "split" in method.info.needs:
        raise UserError(
            f'{slug} takes its steps together with the server, where rule = "{word}" guides none: leave --rule out, or choose a '
            "method such as fedit."
        )
    if hasattr(type(method), "_without_rule"):
        raise UserError(f'{slug} has a rule over it already, which knows nothing of rule = "{word}": leave one of them out.')
    if not method.sums:
        raise UserError(
            f'{slug} needs each update by itself and not their mean, so rule = "{word}" can do nothing: leave --rule out, or '
            "choose a method such as fedit."
        )
    if method.in_part:
        raise UserError(
            f'{slug} sends some entries of its tensors, and rule = "{word}" acts on whole ones: leave --rule out, or choose a '
            "method such as fedit."
        )
    if word == "mimelite" and method.optim.moments == 0:
        raise UserError(
            f'{slug} trains by SGD without momentum, which has no state for rule = "mimelite" to share: set method.momentum, or '
            "take mime."
        )
    if word == "mime" and method.demands:
        raise UserError(
            f'{slug} needs {", ".join(method.demands)} in every update, and rule = "mime" has exchanges of gradients alone: take '
            "mimelite."
        )
