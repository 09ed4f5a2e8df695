"""The rules of an experiment over its method: the method as it is played, the server's step, and what makes no sense together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.errors import UserError

if TYPE_CHECKING:
    from weft.adaptation.lora_options import LoRAOptions
    from weft.experiment.whole import Experiment
    from weft.federation.asynchrony import Asynchrony
    from weft.federation.method import Method
    from weft.federation.server_step import ServerStep


def played(x: Experiment, method: Method) -> Method:
    """The method with the options of LoRA, the statistics of batch norms and the rule over it. Baselines have no rule: nobody is
    apart from anybody in them, or another method is played.

    Raises:
        UserError: the options or the rule make no sense over the method.
    """
    from weft.rules import composed, with_norms, with_options

    method = with_norms(with_options(method, options_of(x)), x.batch_norms)
    if x.rule == "none" or x.baseline is not None:
        return method
    return composed(method, x.rule, **({"feddyn_alpha": x.feddyn_alpha} if x.rule == "feddyn" else {}))


def turns(x: Experiment) -> int:
    """How many turns of training there are in the planned rounds, which count exchanges."""
    from weft.rules import mixin

    return x.rounds if x.rule == "none" else -(-x.rounds // mixin(x.rule).exchanges)


def options_of(x: Experiment) -> LoRAOptions:
    """Of the method's LoRA."""
    from weft.adaptation.lora_options import LoRAOptions

    seed = x.seed if x.lora_variant == "vera" else 0  # of nothing else
    return LoRAOptions(x.lora_scaling, x.lora_ratio, x.lora_dropout, x.lora_variant, seed, x.lora_start, x.lora_target)


def step_of(x: Experiment) -> ServerStep:
    """What the server makes of a mean."""
    from weft.federation.server_step import ServerStep

    if x.baseline is not None:
        return ServerStep()
    return ServerStep(x.server_step, x.server_lr, x.server_beta1, x.server_beta2, x.server_tau)


def asynchrony_of(x: Experiment) -> Asynchrony | None:
    """How its server goes on while clients are at work; None if it waits for them. Baselines wait."""
    from weft.federation.asynchrony import MIXING, Asynchrony

    if x.aggregation == "synchronous" or x.baseline is not None:
        return None
    mixing = MIXING if x.mixing is None else x.mixing
    return Asynchrony(x.aggregation, x.concurrency, x.buffer, mixing, x.staleness, x.staleness_a, x.staleness_b)


def check(x: Experiment, method: Method) -> None:
    """Refuse what makes no sense, before anything is loaded.

    Raises:
        UserError: it is the rule or the step over this method, or one of them beside other settings.
    """
    from weft.communication.codecs import codec
    from weft.rules import mixin

    if "split" in method.info.needs:
        _check_split(x, method)
    for name in ("server_lr", "server_beta1"):
        if x.server_step == "none" and (value := getattr(x, name)) is not None:
            raise UserError(
                f"{name} is {value}, but there is no step of the server's that it could be of: give --server-step too."
            )
    if x.baseline is not None:
        played(x, method)
        return
    if not method.sums and codec(x.codec).alpha(1) > 0:
        raise UserError(
            f"{method.info.slug} needs each update by itself and not their mean, and may send values of another frame every "
            f"round, so that a shift would learn nothing: take --codec {x.codec.partition('+')[2]}."
        )
    step_of(x).check(method.info.slug, method.sums)
    _check_asynchrony(x, method)
    played(x, method)
    if x.rule == "none":
        return
    if x.robust != "none":
        raise UserError(
            f'robust = "{x.robust}" stands in for the mean of models and not for what rule = "{x.rule}" sums up besides, so '
            "that one client could spoil that: leave one of the two out."
        )
    if mixin(x.rule).stateful and codec(x.codec).omega(1 << 20) > 0:  # something is lost
        raise UserError(
            f'rule = "{x.rule}" adds up over all rounds what clients change, at the client and at the server, and what the codec '
            f"{x.codec} does to an update would add up between the two: take --codec identity, or --rule mime."
        )
    if x.rule == "feddyn" and x.server_step != "none":
        raise UserError(
            f'rule = "feddyn" says what the server makes of a mean, and so does server_step = "{x.server_step}": leave one out.'
        )


def _check_asynchrony(x: Experiment, method: Method) -> None:
    """
    Raises:
        UserError: the server can't go on without waiting, or is told how to where it waits.
    """
    from weft.communication.codecs import codec
    from weft.devices import ALWAYS, read

    slug, out = method.info.slug, "leave --aggregation out"
    idle = {"synchronous": ("concurrency", "buffer", "mixing"), "fedasync": ("buffer",), "fedbuff": ("mixing",)}[x.aggregation]
    for name in idle:
        if (value := getattr(x, name)) is not None:
            raise UserError(f'{name} is {value}, which aggregation = "{x.aggregation}" has no use for: leave --{name} out.')
    if x.aggregation == "synchronous":
        return
    if x.devices is None:
        raise UserError(
            f'aggregation = "{x.aggregation}" goes by who is done first, and no device keeps the time: give --devices too.'
        )
    hours = x.availability != ALWAYS
    if odd := next((d.name for d, _ in read(x.devices) if (hours and d.available) or d.battery), None):
        raise UserError(
            f'aggregation = "{x.aggregation}" takes devices to be there at any time, and {odd} has hours or a battery: {out}, '
            "or give --availability always and devices without batteries."
        )
    if why := method.waits:
        raise UserError(f"{slug} {why}, so its server has to wait for a round: {out}, or choose a method such as fedit.")
    budgeted = "is compared with what the next round will cost, and turns here last beyond a round"
    one_by_one = "says who is drawn into a cohort, and here clients are drawn one by one"
    wrong = {
        "deadline": x.deadline is not None and "closes rounds, and nobody waits for one here",
        "availability": x.availability not in (None, ALWAYS) and one_by_one,
        "cohorts": x.cohorts != "random" and one_by_one,
        "periods": x.periods > 1 and "lets rows arrive between rounds, when turns are under way",
        "energy_budget": x.energy_budget is not None and budgeted,
        "carbon_budget": x.carbon_budget is not None and budgeted,
        "rule": x.rule != "none" and "adds up what whole cohorts change that all began from one model",
        "robust": x.robust != "none" and "compares updates that began from one model",
        "max_factor": x.max_factor not in ("auto", "off") and "takes back states on which turns that are under way rest",
        "codec": codec(x.codec).alpha(1) > 0 and "has a shift that client and server move in step",
        "server_step": x.aggregation == "fedasync" and x.server_step != "none" and "steps towards a mean, and FedAsync has none",
    }
    for name, reason in wrong.items():
        if reason:
            raise UserError(f'{name} = "{getattr(x, name)}" {reason}: {out}, or --{name.replace("_", "-")}.')


def _check_split(x: Experiment, method: Method) -> None:
    """
    Raises:
        UserError: the experiment asks for something that steps of clients and server together can't have.
    """
    slug = method.info.slug
    if x.devices is not None:
        raise UserError(
            f"{slug} computes a part of each step at the server, which the clock of simulated devices knows nothing of: leave "
            "--devices out."
        )
    if x.robust != "none" and x.baseline is None:
        raise UserError(
            f'{slug} moves the server\'s blocks by the gradients of each client, which robust = "{x.robust}" never sees: leave '
            "--robust out, rather than protect a part."
        )
    if x.download_codec != "identity":
        raise UserError(
            f'{slug} has values at the server that no client gets, and download_codec = "{x.download_codec}" would change them '
            "too: leave --download-codec out."
        )
