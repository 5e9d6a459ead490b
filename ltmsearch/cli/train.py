"""The command `train`: a recipe, data, and any training key of the recipe as an option."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ltmsearch.cli import options
from ltmsearch.cli.app import OUTPUT, AsJson, DataDir, Dataset, Quiet, Verbose, app, flag, speaks
from ltmsearch.cli.terminal import print_json, results, watched

PANELS = NET, OPTIMIZER, RATE, IMAGES, LOSS, FORMAT, SWITCHES = tuple(
    f"Keys of the recipe: {about}"
    for about in (
        "net and length", "optimizer", "learning rate", "augmentation and regularisation",
        "information bottleneck and distillation", "averaging and number format", "on or off",
    )
)  # fmt: skip
"""Panels of the help. Switches have one of their own: their names would leave no room to the others in 80 columns."""
_net, _opt, _rate, _images, _loss, _format, _switch = (partial(typer.Option, rich_help_panel=panel) for panel in PANELS)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe, e.g. of a study's recipes folder.")],
    data_dir: DataDir = None,
    dataset: Dataset = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="FILE|RUN", help="Weights to start from: a checkpoint, or a study's run directory."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Checkpoint of the unmerged net, to learn from. (default: that of --init)"),
    ] = None,
    device: Annotated[str, options.such_as(options.DEVICES, "auto, cpu, cuda, cuda:1, …")] = "auto",
    resume: Annotated[bool, flag("--resume", "Go on with the training in that folder.")] = False,
    num_classes: Annotated[int | None, _net(help="Width of the classifier.")] = None,
    img_size: Annotated[int | None, _net(help="Side of the images, in pixels.")] = None,
    epochs: Annotated[int | None, _net(help="Passes over the training images.")] = None,
    train_steps_per_epoch: Annotated[
        int | None, _net(help="Steps that count as one epoch; without it one pass over the training images.")
    ] = None,
    batch_size: Annotated[
        int | None,
        _net(
            help="Images per optimizer step, over all devices and accumulated parts (4 × 64 in the published training)."
        ),
    ] = None,
    grad_accum_steps: Annotated[
        int | None, _net(help="Parts that a batch is computed in, one after another, to save memory.")
    ] = None,
    seed: Annotated[int | None, _net(help="Of everything random.")] = None,
    opt: Annotated[str | None, _opt(help="timm's name of the optimizer.")] = None,
    weight_decay: Annotated[
        float | None, _opt(help="Of weights only: not of biases, norms and what the merging operators exempt.")
    ] = None,
    momentum: Annotated[float | None, _opt(help="Of optimizers that have one.")] = None,
    layer_decay: Annotated[
        float | None, _opt(help="Factor on the learning rate from each group of layers to the one below it.")
    ] = None,
    clip_grad: Annotated[float | None, _opt(help="Limit on the gradient, in the sense of clip_mode.")] = None,
    clip_mode: Annotated[
        str | None,
        options.one_of(
            options.CLIP_MODES,
            "What clip_grad limits: the whole norm, each value, or each unit's norm relative to its weights'",
            panel=OPTIMIZER,
        ),
    ] = None,
    lr: Annotated[float | None, _rate(help="Peak learning rate.")] = None,
    sched: Annotated[
        str | None, options.one_of(options.SCHEDS, "timm's name of the learning-rate schedule", panel=RATE)
    ] = None,
    min_lr: Annotated[float | None, _rate(help="Learning rate at the end.")] = None,
    warmup_epochs: Annotated[int | None, _rate(help="Epochs in which the learning rate rises to its peak.")] = None,
    warmup_lr: Annotated[float | None, _rate(help="Where it rises from.")] = None,
    cooldown_epochs: Annotated[int | None, _rate(help="Epochs at min_lr after the schedule's end.")] = None,
    decay_epochs: Annotated[float | None, _rate(help="Epochs between drops of a step schedule.")] = None,
    decay_rate: Annotated[float | None, _rate(help="Factor of each drop.")] = None,
    smoothing: Annotated[float | None, _images(help="Label smoothing.")] = None,
    aa: Annotated[str | None, _images(help="timm's automatic augmentation, e.g. rand-m9-mstd0.5 or augmix-m3.")] = None,
    scale: Annotated[
        tuple[float, float] | None,
        _images(metavar="LOW HIGH", help="Smallest and largest share of the area that a random crop takes."),
    ] = None,
    ratio: Annotated[
        tuple[float, float] | None,
        _images(metavar="LOW HIGH", help="Least and greatest aspect ratio of a random crop."),
    ] = None,
    hflip: Annotated[float | None, _images(help="Probability of mirroring.")] = None,
    color_jitter: Annotated[
        float | None,
        _images(
            help="Strength of random brightness, contrast and saturation; aa takes its place where both are given."
        ),
    ] = None,
    reprob: Annotated[float | None, _images(help="Probability of random erasing.")] = None,
    remode: Annotated[
        str | None, options.one_of(options.REMODES, "What is put in the place of what is erased", panel=IMAGES)
    ] = None,
    recount: Annotated[int | None, _images(help="Patches erased.")] = None,
    mixup: Annotated[float | None, _images(help="Alpha of mixup; 0 is off.")] = None,
    cutmix: Annotated[float | None, _images(help="Alpha of cutmix; 0 is off.")] = None,
    mixup_prob: Annotated[float | None, _images(help="Probability of mixup or cutmix per batch.")] = None,
    mixup_switch_prob: Annotated[float | None, _images(help="Probability of cutmix where both are on.")] = None,
    mixup_mode: Annotated[
        str | None,
        options.one_of(
            options.MIXUP_MODES,
            "Whether batches, pairs of images or images are mixed each in their own way",
            panel=IMAGES,
        ),
    ] = None,
    mixup_off_epoch: Annotated[int | None, _images(help="Epoch from which on nothing is mixed; 0: none.")] = None,
    drop_path: Annotated[float | None, _images(help="Stochastic depth; without it the network's own.")] = None,
    model_ema_decay: Annotated[float | None, _format(help="Share of the average that each step keeps.")] = None,
    amp_dtype: Annotated[
        str | None, options.one_of(options.AMP_DTYPES, "Its number format; float16 scales the loss", panel=FORMAT)
    ] = None,
    ib_weight: Annotated[float | None, _loss(help="Weight of the information-bottleneck loss; 0 is off.")] = None,
    ib_warmup_ratio: Annotated[float | None, _loss(help="Share of the epochs before it sets in.")] = None,
    ib_beta: Annotated[float | None, _loss(help="How sharply an image belongs to its nearest centroid.")] = None,
    distill_loss_weight: Annotated[
        float | None, _loss(help="Weight of matching a teacher's logits, the unmerged net's; 0 is off.")
    ] = None,
    kd_temperature: Annotated[float | None, _loss(help="Temperature of that match.")] = None,
    sched_on_updates: Annotated[
        bool | None, _switch(metavar="", help="Change the learning rate with every step, not with every epoch.")
    ] = None,
    model_ema: Annotated[
        bool | None,
        _switch(
            metavar="",
            help="Average the weights over the steps; the average is what is deployed where it scores better.",
        ),
    ] = None,
    model_ema_warmup: Annotated[
        bool | None,
        _switch(
            metavar="", help="Keep less in the first steps, or a short training would end with an average of its start."
        ),
    ] = None,
    amp: Annotated[bool | None, _switch(metavar="", help="Mixed precision, where the device has it.")] = None,
    sync_bn: Annotated[
        bool | None, _switch(metavar="", help="BatchNorm statistics over all devices (not on CPUs).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the training. (default: trainings/<study>-<trial>)",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a recipe: from scratch, or from given weights. With --resume it continues.

    Example: ltmsearch train runs/my-study/recipes/4.yaml --data-dir my-images --epochs 30

    Several GPUs: torchrun --nproc-per-node 4 -m ltmsearch train …
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from ltmsearch.config.recipe import NET, Recipe, load_recipe

    loaded = load_recipe(recipe)
    keys = {name: value for name, value in given.items() if name in Recipe.model_fields and name not in NET}
    changed = loaded.changed({name: None if value == "none" else value for name, value in keys.items()})
    folder = out
    with watched(quiet=quiet, verbose=verbose, stopped=lambda: _how_to_go_on(folder)) as callbacks:
        from ltmsearch.training.options import TrainingOptions, default_folder
        from ltmsearch.training.summary import print_training, training_record
        from ltmsearch.training.trainer import train_recipe

        folder = out or default_folder(loaded, recipe)
        options = TrainingOptions(
            out=folder,
            dataset=dataset or ("folder" if data_dir else "digits"),
            data_dir=data_dir,
            init=init,
            teacher=teacher,
            device=device,
            resume=resume,
        )
        result = train_recipe(changed, options, callbacks)
    if as_json and speaks():
        print_json(training_record(result))
    elif not quiet and speaks():
        print_training(results(), result)


def _how_to_go_on(folder: Path | None) -> str:
    if folder is not None and folder.exists():
        return f"the same command with --resume continues, {folder} holds what is done"
    return "nothing is written yet, the same command begins again"
