"""Register tokens: learned tokens that a vision transformer has beside its own, and a classifier that reads them.

Registers take part in attention and never merge (Darcet et al., https://arxiv.org/abs/2309.16588). A classifier that
reads one of them instead of the class token is ViGT's (https://arxiv.org/abs/2308.06009).

Shapes: B images, N tokens of all kinds, K registers added to the network's own, D channels.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltmsearch.config.names import Readout
from ltmsearch.config.network import MAX_REGISTERS, check_readout
from ltmsearch.errors import InputError, check_choice
from ltmsearch.models.rewiring import Rewired

ARGUMENTS: dict[type[nn.Module], str] = {VisionTransformer: "reg_tokens", Eva: "num_reg_tokens"}
"""timm's networks that may have registers → the argument with their number."""
OF_FEATURES = ("features_only", "out_indices", "feature_cls")
"""Arguments of `timm.create_model` with which it returns a feature net."""


@dataclass(frozen=True, kw_only=True)
class AddedRegisters:
    """Registers of a network beyond those that timm gives it."""

    added: int
    """K."""
    own: int
    """Registers that timm's network has without them; they come first."""
    read: bool
    """Whether the classifier reads them alone."""
    argument: str
    """timm's argument with the number of all registers."""


class RegisterReadout(nn.Module):
    """Pooling by the mean of some tokens: (B, N, D) to (B, D).

    Args:
        first: Place of the first.
        number: How many follow each other.
    """

    def __init__(self, first: int, number: int) -> None:
        super().__init__()
        self.first = first
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the (B, number, D) tokens."""
        return x[:, self.first : self.first + self.number].mean(dim=1)


def check_registers(registers: int, readout: Readout) -> None:
    """Raise an `InputError` unless a network can have this number of registers and this readout."""
    if isinstance(registers, bool) or not isinstance(registers, int) or not 0 <= registers <= MAX_REGISTERS:
        raise InputError(f"`registers` must be a whole number from 0 to {MAX_REGISTERS}, but got {registers!r}")
    check_choice("`readout`", readout, Readout)
    try:
        check_readout(readout, registers)
    except ValueError as error:
        raise InputError(str(error)) from None


def added_registers(model: nn.Module) -> AddedRegisters | None:
    """The registers that were added to a network, or to the one inside timm's feature net; None without any."""
    return getattr(getattr(model, "model", model), "added_registers", None)


def register_arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments by which `create_subnet` adds a network's registers again; none without any."""
    found = added_registers(model)
    if found is None:
        return {}
    return {found.argument: found.own, "registers": found.added, "readout": "register" if found.read else "timm"}


def create_with_registers(
    backbone: str, registers: int, *, read: bool, pretrained: bool = False, **timm_kwargs: Any
) -> nn.Module:
    """Build timm's network with `registers` further register tokens, by timm's own argument.

    With published weights, everything but the new registers has them; a classifier that reads the registers, but was
    trained on other tokens, starts anew too.

    Args:
        read: Whether the classifier reads the registers alone.

    Raises:
        InputError: If timm's network cannot have registers.
    """
    whole = {name: value for name, value in timm_kwargs.items() if name not in OF_FEATURES}
    with torch.device("meta"):
        usual: Any = timm.create_model(backbone, **whole)
    argument = ARGUMENTS.get(type(usual))
    if argument is None:
        served = " or ".join(kind.__name__ for kind in ARGUMENTS)
        raise InputError(
            f"`registers` must be 0 for {backbone}, but got {registers}: it is timm's {type(usual).__name__}, and only "
            f"{served} takes registers"
        )
    own = 0 if usual.reg_token is None else int(usual.reg_token.shape[1])
    model: nn.Module = timm.create_model(backbone, **{**timm_kwargs, argument: own + registers})
    network: Any = model.model if timm_kwargs.get("features_only") else model
    network.added_registers = AddedRegisters(added=registers, own=own, read=read, argument=argument)
    if read:
        # Where timm has attention pooling, so that its networks need no other code; `Eva` pools all tokens by it.
        network.attn_pool = RegisterReadout(network.num_prefix_tokens - registers, registers)
        network.pool_include_prefix = True
    if pretrained:
        published = timm.create_model(backbone, pretrained=True, **whole).state_dict()
        _load_published(network, published)
    return model


def _load_published(network: nn.Module, published: Mapping[str, Tensor]) -> None:
    held = network.state_dict()
    fitting = without_classifiers(widened(network, published), unread_classifiers(network))
    network.load_state_dict({name: value for name, value in fitting.items() if name in held}, strict=False)


def unread_classifiers(model: nn.Module) -> tuple[str, ...]:
    """Paths of the classifiers that read new registers, so that weights of a plain network do not fit them."""
    registers = added_registers(model)
    if registers is None or not registers.read:
        return ()
    name = cast(Mapping[str, Any], model.pretrained_cfg).get("classifier")
    return (name,) if isinstance(name, str) else tuple(name or ())


def without_classifiers(state: Mapping[str, Tensor], classifiers: Collection[str]) -> dict[str, Tensor]:
    """A state dict without the tensors of some classifiers."""
    return {name: value for name, value in state.items() if name.rpartition(".")[0] not in classifiers}


def replaced_pooling(model: Any, state: Collection[str]) -> set[str]:
    """Those names of a state dict that are of attention pooling, where the network reads registers instead."""
    reads_registers = isinstance(getattr(model, "attn_pool", None), RegisterReadout)
    return {name for name in state if reads_registers and name.startswith("attn_pool.")}


def without_registers(model: Any) -> Any:
    """A network as timm's conversion of weights sees it, without the added registers."""
    registers = added_registers(model)
    if registers is None:
        return model
    shorter = {}
    if model.pos_embed is not None and not model.no_embed_class:
        shorter["pos_embed"] = model.pos_embed[:, registers.added :]  # of whom only the shape is read
    return Rewired(model, num_prefix_tokens=model.num_prefix_tokens - registers.added, **shorter)


def lacks_registers(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict by timm's names has only those registers that timm gives the network."""
    registers, held = added_registers(model), state.get("reg_token")
    if registers is None:
        return False
    return registers.own == 0 if held is None else held.dim() == 3 and held.shape[1] == registers.own


def widened(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain network's state dict with the added registers of `model` as initialised, and their positions if any."""
    registers = added_registers(model)
    if registers is None:
        return dict(state)
    first = model.num_prefix_tokens - registers.added
    new = {"reg_token": model.reg_token.detach()[:, registers.own :]}
    places = {"reg_token": registers.own}
    if "pos_embed" in state and model.pos_embed is not None and not model.no_embed_class:
        new["pos_embed"], places["pos_embed"] = model.pos_embed.detach()[:, first : first + registers.added], first
    state = dict(state)
    for name, values in new.items():
        held = state.get(name, values[:, :0]).to(values.device)
        if held.dim() == 3 and held.shape[-1] == values.shape[-1]:  # else it is another network's
            state[name] = torch.cat((held[:, : places[name]], values, held[:, places[name] :]), dim=1)
    return state
