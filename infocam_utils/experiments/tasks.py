"""What the notebooks will want from the store, cut into tasks that any machine with the data can compute.

A task is a stage of a recipe and a seed: a trained network, features, or the evidence of localization. It
names data and weights and holds their digests, so that a worker finds its own copy and knows it is the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from infocam_utils.classifiers import backbones, training
from infocam_utils.data import store
from infocam_utils.data.images import ImageSet, prepare
from infocam_utils.experiments import imbalance, localize
from infocam_utils.experiments import recipe as recipes
from infocam_utils.experiments.recipe import Recipe

Stage = Literal["network", "features", "evidence"]
RAW = ("images", "minibirds")  # kinds of entries that every machine makes from its own copy of the data


@dataclass(frozen=True)
class Task:
    """One thing to compute; everything in it is JSON.

    Attributes
    ----------
    stage : "network", trained; "features" of the frozen one; "evidence", of both networks and maps
    recipe : the fields of a Recipe, its weights by their file's name
    seed : of the network; of frozen features any, since they have none
    images : digests of the sets of images that are read
    weights : digest of the weights, see `backbones.weights_digest`
    options : arguments of `localize.evidence`, and `limit`
    """

    stage: Stage
    recipe: dict[str, Any]
    seed: int
    images: list[str]
    weights: str
    options: dict[str, Any] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """What the store knows it by, once it is done: the task and the code."""
        return {"task": asdict(self), "code": store.code_digest("experiments.tasks")}

    def __str__(self) -> str:
        start = ", log-prior start" * self.recipe["log_prior_bias"]
        return f"{self.stage} of {self.recipe['dataset']}, {self.recipe['loss']}{start}, seed {self.seed}"


def tasks_of(notebook: str, parameters: Mapping[str, Any]) -> list[Task]:
    """The tasks behind a notebook with all its parameters; none for those that train nothing for long.

    >>> small = {"dataset": "digits", "seeds": [0, 1], "limit": None, "recipe": {}, "data_dir": None}
    >>> [str(task) for task in tasks_of("03_x", small)][:2]
    ['network of digits, softmax, seed 0', 'network of digits, pc, seed 0']
    """
    if notebook[:2] not in ("03", "04"):
        return []
    data_dir, limit, seeds = parameters["data_dir"], parameters["limit"], parameters["seeds"]
    made: list[Task] = []
    for name in parameters["dataset"].split(",") if notebook[:2] == "03" else [parameters["dataset"]]:
        recipe = recipes.recipe(name, data_dir, **parameters["recipe"])
        if notebook[:2] == "04":
            images = [part.key for part in localize.sets(recipe, data_dir, limit)]
            options = {n: parameters[n] for n in ("limit", "region", "paddings", "thresholds")}
            made += [_task("evidence", recipe, seed, images, options) for seed in seeds]
            continue
        of = imbalance.task(recipe, data_dir, limit)
        images, options = [of.train.key, of.test.key], {"limit": limit}
        if recipe.frozen:
            made.append(_task("features", recipe, seeds[0], images, options))
        else:
            several = imbalance.networks_of(of.recipe)
            made += [_task("network", r, seed, images, options) for seed in seeds for _, r in several]
    return made


def check(tasks: Sequence[Task], data_dir: str | Path | None = None) -> list[str]:
    """What this machine lacks for the tasks, as sentences that name the remedy."""
    lacking = {}
    for task in tasks:
        try:
            recipe = _located(task, data_dir)
            if [part.key for part in _images(task, recipe, data_dir)] != task.images:
                name = task.recipe["dataset"]
                lacking[name] = f"its {name} is another than the one that was planned with; copy that one"
        except (FileNotFoundError, ValueError) as error:
            lacking[str(error)] = str(error)
    return [*lacking.values()]


def compute(task: Task, data_dir: str | Path | None = None) -> dict[str, dict[str, bytes]]:
    """Do the task in this machine's store; its entries file by file, without RAW ones."""
    recipe = _located(task, data_dir)
    with store.recording() as entries:
        if task.stage == "network":
            recipes.network(recipe, task.seed, data_dir)
        elif task.stage == "features":
            imbalance.features_of(imbalance.task(recipe, data_dir, task.options["limit"]), task.seed)
        else:
            images = localize.sets(recipe, data_dir, task.options["limit"])
            options = {name: value for name, value in task.options.items() if name != "limit"}
            localize.evidence(recipe, task.seed, images, data_dir=data_dir, **options)
    wanted = [entry for entry in entries if entry.name.rpartition("-")[0] not in RAW]
    return {entry.name: {f.name: f.read_bytes() for f in entry.iterdir()} for entry in wanted}


def train_together(tasks: Sequence[Task], data_dir: str | Path | None = None) -> None:
    """Train the networks behind the tasks with all of torchrun's processes, which must all call this.

    The first one's store keeps them. Afterwards the processes are no group any more.
    """
    for task in tasks:
        if task.stage != "features":
            recipes.network(_located(task, data_dir), task.seed, data_dir)
    training.leave()


def seconds(task: Task, data_dir: str | Path | None = None) -> float:
    """About how long the task takes here: of one small batch, times the images that it passes."""
    recipe = _located(task, data_dir)
    sets_ = _images(task, recipe, data_dir)
    model = recipes.untrained(recipe, sets_[0].num_classes, task.seed)
    few = prepare(sets_[0].pixels(range(min(16, len(sets_[0])))), recipe.geometry)

    def timed(train: bool) -> float:
        spent = []
        with torch.set_grad_enabled(train):
            for _ in range(3):
                start = time.perf_counter()
                loss = model.train(train)(few).square().mean()
                if train:
                    loss.backward()
                spent.append(time.perf_counter() - start)
        return min(spent) / len(few)

    looked_at = 0 if task.stage == "network" else sum(len(part) for part in sets_)
    return looked_at * timed(False) + (0 if recipe.frozen else recipe.passes * timed(True))


def _task(stage: Stage, recipe: Recipe, seed: int, images: list[str], options: dict[str, Any]) -> Task:
    weights = recipe.weights if recipe.weights in (None, "imagenet") else Path(recipe.weights).name
    said, digest = asdict(replace(recipe, weights=weights)), backbones.weights_digest(recipe.weights)
    return Task(stage, said, seed, images, digest, options)


def _located(task: Task, data_dir: str | Path | None) -> Recipe:
    """The task's recipe with this machine's own file of weights, which must be the same."""
    recipe, root = Recipe(**task.recipe), store.data_root(data_dir)
    if recipe.weights in (None, "imagenet"):
        return recipe
    file = root / recipe.weights
    if not file.is_file() or backbones.weights_digest(file) != task.weights:
        state = "is another file" if file.is_file() else "is not there"
        raise FileNotFoundError(f"{recipe.weights} {state} in its data folder {root}; copy it there")
    return replace(recipe, weights=str(file))


def _images(task: Task, recipe: Recipe, data_dir: str | Path | None) -> Sequence[ImageSet]:
    if task.stage == "evidence":
        return localize.sets(recipe, data_dir, task.options["limit"])
    of = imbalance.task(recipe, data_dir, task.options["limit"])
    return of.train, of.test
