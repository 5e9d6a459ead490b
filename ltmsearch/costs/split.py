"""Split of a network between two devices: tokens that leave the first one after a layer.

The tokens alone leave it, so the cost is meaningful only where nothing else has to: behind merges that are not undone.
"""

from ltmsearch.costs.tables import ChainedCosts
from ltmsearch.errors import InputError, unknown_name
from ltmsearch.schedules.space import SearchSpace


def check_split_layer(layer: str, costs: ChainedCosts, space: SearchSpace, *, backbone: str) -> None:
    """Raise unless the number of tokens sent after a layer depends on the schedule.

    Raises:
        InputError: If there is no such layer, its merges are undone, or no layer up to it may merge.
    """
    if layer not in costs.layers:
        raise unknown_name("--split-layer", layer, costs.layers)
    chain = next(chain for chain in costs.chains if layer in [shape.name for shape in chain.layers])
    if chain.unmerges:
        raise InputError(
            "--split-layer must be a layer whose merges are not undone, as every layer of a ViT or EVA, but got "
            f"{layer}: {backbone} undoes them within {chain.module}, so the whole feature map has to be sent"
        )
    most, fewest = _range(layer, costs, space)
    if fewest == most:
        merging = [name for name, options in zip(space.layers, space.choices, strict=True) if len(options) > 1]
        raise InputError(
            "--split-layer must be a layer at or behind one that may merge in the search space, but got "
            f"{layer}, after which every schedule sends {most:g} tokens; the first that may merge is {merging[0]}"
        )


def describe_split(layer: str, costs: ChainedCosts, space: SearchSpace) -> str:
    """A line about the tokens sent, for the user."""
    most, fewest = _range(layer, costs, space)
    kept = next(chain.prefix for chain in costs.chains if layer in [shape.name for shape in chain.layers])
    never = f", {kept} of them class or register tokens, which never merge" if kept else ""
    return f"split after {layer}: {most:g} tokens sent without merging, {fewest:g} at the smallest keep ratios{never}"


def _range(layer: str, costs: ChainedCosts, space: SearchSpace) -> tuple[float, float]:
    plain = space.schedule(0 * space.cheapest)
    return costs.tokens_sent(plain, layer), costs.tokens_sent(space.schedule(space.cheapest), layer)
