"""The command `train`: a recipe, data, and any training key of the recipe as an option."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ltmsearch.cli.app import DataDir, Dataset, app, say, speaks


def _key(meaning: str) -> Any:
    """An option that takes the place of a training key of the recipe."""
    return typer.Option(help=meaning, rich_help_panel="Training keys (default: the recipe's)", show_default=False)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, e.g. of a study's recipes folder.")],
    data_dir: DataDir = None,
    dataset: Dataset = None,
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from: a checkpoint, or a study's run directory.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Checkpoint of the unmerged net, to learn from. (default: that of --init)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the training. (default: trainings/<study>-<trial>)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in that folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
    num_classes: Annotated[int | None, _key("Width of the classifier.")] = None,
    img_size: Annotated[int | None, _key("Side of the images, in pixels.")] = None,
    epochs: Annotated[int | None, _key("Passes over the training images.")] = None,
    train_steps_per_epoch: Annotated[
        int | None, _key("Steps that count as one epoch; without it one pass over the training images.")
    ] = None,
    batch_size: Annotated[
        int | None,
        _key("Images per optimizer step, over all devices and accumulated parts (4 × 64 in the published training)."),
    ] = None,
    grad_accum_steps: Annotated[
        int | None, _key("Parts that a batch is computed in, one after another, to save memory.")
    ] = None,
    opt: Annotated[str | None, _key("timm's name of the optimizer.")] = None,
    lr: Annotated[float | None, _key("Peak learning rate.")] = None,
    weight_decay: Annotated[
        float | None, _key("Of weights only: not of biases, norms and what the merging operators exempt.")
    ] = None,
    momentum: Annotated[float | None, _key("Of optimizers that have one.")] = None,
    layer_decay: Annotated[
        float | None, _key("Factor on the learning rate from each group of layers to the one below it.")
    ] = None,
    clip_grad: Annotated[float | None, _key("Limit on the gradient, in the sense of clip_mode.")] = None,
    clip_mode: Annotated[
        str | None,
        _key("What clip_grad limits: the whole norm, each value, or each unit's norm relative to its weights'."),
    ] = None,
    sched: Annotated[str | None, _key("timm's name of the learning-rate schedule.")] = None,
    sched_on_updates: Annotated[
        bool | None, _key("Change the learning rate with every step, not with every epoch.")
    ] = None,
    min_lr: Annotated[float | None, _key("Learning rate at the end.")] = None,
    warmup_epochs: Annotated[int | None, _key("Epochs in which the learning rate rises to its peak.")] = None,
    warmup_lr: Annotated[float | None, _key("Where it rises from.")] = None,
    cooldown_epochs: Annotated[int | None, _key("Epochs at min_lr after the schedule's end.")] = None,
    decay_epochs: Annotated[float | None, _key("Epochs between drops of a step schedule.")] = None,
    decay_rate: Annotated[float | None, _key("Factor of each drop.")] = None,
    smoothing: Annotated[float | None, _key("Label smoothing.")] = None,
    aa: Annotated[str | None, _key("timm's automatic augmentation, e.g. rand-m9-mstd0.5 or augmix-m3.")] = None,
    scale: Annotated[
        tuple[float, float] | None, _key("Smallest and largest share of the area that a random crop takes.")
    ] = None,
    ratio: Annotated[tuple[float, float] | None, _key("Least and greatest aspect ratio of a random crop.")] = None,
    hflip: Annotated[float | None, _key("Probability of mirroring.")] = None,
    color_jitter: Annotated[
        float | None,
        _key("Strength of random brightness, contrast and saturation; aa takes its place where both are given."),
    ] = None,
    reprob: Annotated[float | None, _key("Probability of random erasing.")] = None,
    remode: Annotated[str | None, _key("What is put in the place of what is erased.")] = None,
    recount: Annotated[int | None, _key("Patches erased.")] = None,
    mixup: Annotated[float | None, _key("Alpha of mixup; 0 is off.")] = None,
    cutmix: Annotated[float | None, _key("Alpha of cutmix; 0 is off.")] = None,
    mixup_prob: Annotated[float | None, _key("Probability of mixup or cutmix per batch.")] = None,
    mixup_switch_prob: Annotated[float | None, _key("Probability of cutmix where both are on.")] = None,
    mixup_mode: Annotated[
        str | None, _key("Whether batches, pairs of images or images are mixed each in their own way.")
    ] = None,
    mixup_off_epoch: Annotated[int | None, _key("Epoch from which on nothing is mixed; 0: none.")] = None,
    drop_path: Annotated[float | None, _key("Stochastic depth; without it the network's own.")] = None,
    model_ema: Annotated[
        bool | None, _key("Average the weights over the steps; the average is what is deployed where it scores better.")
    ] = None,
    model_ema_decay: Annotated[float | None, _key("Share of the average that each step keeps.")] = None,
    model_ema_warmup: Annotated[
        bool | None, _key("Keep less in the first steps, or a short training would end with an average of its start.")
    ] = None,
    amp: Annotated[bool | None, _key("Mixed precision, where the device has it.")] = None,
    amp_dtype: Annotated[str | None, _key("Its number format; float16 scales the loss.")] = None,
    sync_bn: Annotated[bool | None, _key("BatchNorm statistics over all devices (not on CPUs).")] = None,
    seed: Annotated[int | None, _key("Of everything random.")] = None,
    ib_weight: Annotated[float | None, _key("Weight of the information-bottleneck loss; 0 is off.")] = None,
    ib_warmup_ratio: Annotated[float | None, _key("Share of the epochs before it sets in.")] = None,
    ib_beta: Annotated[float | None, _key("How sharply an image belongs to its nearest centroid.")] = None,
    distill_loss_weight: Annotated[
        float | None, _key("Weight of matching a teacher's logits, the unmerged net's; 0 is off.")
    ] = None,
    kd_temperature: Annotated[float | None, _key("Temperature of that match.")] = None,
) -> None:
    """Train a recipe: from scratch, or from given weights. The same command with --resume continues.

    Example: ltmsearch train runs/my-study/recipes/4.yaml --data-dir my-images --epochs 30

    Several GPUs: torchrun --nproc-per-node 4 -m ltmsearch train …
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from ltmsearch.finetune import TrainingOptions, default_folder, train_recipe
    from ltmsearch.finetune.table import print_training
    from ltmsearch.progress import ProgressBars
    from ltmsearch.recipe import NET, Recipe, load_recipe

    loaded = load_recipe(recipe)
    keys = {name: value for name, value in given.items() if name in Recipe.model_fields and name not in NET}
    changed = loaded.changed({name: None if value == "none" else value for name, value in keys.items()})
    options = TrainingOptions(
        out=out or default_folder(loaded, recipe),
        dataset=dataset or ("folder" if data_dir else "digits"),
        data_dir=data_dir,
        init=init,
        teacher=teacher,
        device=device,
        resume=resume,
    )
    console = Console()
    try:
        result = train_recipe(changed, options, None if quiet else ProgressBars(console))
    except KeyboardInterrupt:
        say(
            Console(stderr=True), f"stopped; the same command with --resume continues, {options.out} holds what is done"
        )
        raise typer.Exit(1) from None
    if not quiet and speaks():
        print_training(console, result)
