"""What is to be trained, in words that are checked before anything is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medssl import config
from medssl.config import Raw, Recipe, Train
from medssl.core.errors import UsageError, WeightsError
from medssl.core.run import plain
from medssl.engine import estimate
from medssl.engine.build import encoder, reconstructor, restorer
from medssl.io.run_folder import RECORD

BUILDERS: Mapping[str, Callable[[Recipe], object]] = {
    "denoise": restorer,
    "recon": reconstructor,
    "pretrain": encoder,
}
"""By the task of what can be trained; each refuses a method that its `Config` does not know."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be trained, checked."""

    recipe: Recipe
    train: Train
    noise: estimate.Asked = field(default_factory=estimate.Asked)
    seed: int = 0

    @classmethod
    def of(
        cls,
        recipe: str,
        settings: Mapping[str, Any],
        noise: estimate.Asked,
        seed: int,
        tasks: tuple[str, ...] = ("denoise", "recon"),
    ) -> "Wanted":
        """Check the words before anything is read.

        Args:
            recipe: `TASK/NAME`, `NAME` of the first task, or the path of a YAML file.
            settings: Dotted keys of the recipe with other values.
            noise: What was said about the noise of all scans.
            seed: Of every random number.
            tasks: Whose recipes may be trained.

        Raises:
            UsageError: No such recipe or key, another task, or nothing to learn.
        """
        task, _, name = recipe.partition("/")
        if recipe.endswith((".yaml", ".yml")):
            task, name = config.task_of(recipe), recipe
        elif not name or task not in config.TASKS:
            task, name = tasks[0], recipe
        if task not in tasks:
            raise UsageError(
                f"{task} recipes cannot be trained here",
                f"use {' or '.join(f'{one}/NAME' for one in tasks)}",
            )
        found = config.load(task, name, settings)
        BUILDERS[task](found)
        if found.task == "recon" and noise.law != "auto":
            raise UsageError(
                f"--noise {noise.law} is for images", "leave it out, raw data have normal noise"
            )
        return cls(recipe=found, train=_checked(found), noise=noise, seed=seed)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> "Wanted":
        """What the record of a run says was wanted.

        Raises:
            WeightsError: It is damaged.
        """
        try:
            tree = record["wanted"]
            recipe = config.recorded(tree["recipe"], {}, RECORD)
            noise = estimate.asked(str(tree["noise"]), "auto")
            return cls(recipe=recipe, train=_checked(recipe), noise=noise, seed=int(tree["seed"]))
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise WeightsError(
                "its run.json is damaged or of another version of medssl", "use --overwrite"
            ) from error

    def as_tree(self) -> dict[str, Any]:
        """Plain values for the record."""
        return plain(
            {
                "recipe": config.as_tree(self.recipe, self.recipe.values),
                "noise": self.noise.law,
                "seed": self.seed,
            }
        )

    def refuse_another(self, record: Mapping[str, Any]) -> None:
        """Refuse to go on with a run of something else.

        Raises:
            UsageError: With the keys that differ.
        """
        old, new = (_flat(tree) for tree in (record.get("wanted"), self.as_tree()))
        other = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if other:
            raise UsageError(
                f"the run was begun with another {', '.join(other[:3])}",
                "give the same words, or start anew with --overwrite",
            )


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings."""
    if not isinstance(tree, Mapping):
        return {name.removeprefix("recipe."): tree}
    pairs = [_flat(v, f"{name}.{k}" if name else str(k)) for k, v in tree.items()]
    return {k: v for pair in pairs for k, v in pair.items()}


def _checked(recipe: Recipe) -> Train:
    """How a recipe learns.

    Raises:
        UsageError: Not at all, or with numbers that cannot be right.
    """
    train = recipe.train
    if train is None:
        raise UsageError(f"{recipe.name} learns nothing", "`medssl methods` lists what learns")
    for name, least in (("steps", 1), ("batch", 1), ("save_every", 1), ("accumulate", 1)):
        if getattr(train, name) < least:
            raise UsageError(f"train.{name} is {getattr(train, name)}", f"give {least} or more")
    if not 0 <= train.held_out < 1:
        raise UsageError(f"train.held_out is {train.held_out:g}", "give 0 to less than 1")
    if train.warmup < 0:
        raise UsageError(f"train.warmup is {train.warmup}", "give 0 or more")
    if recipe.raw is not None:
        _check_raw(recipe.raw)
    if recipe.task == "pretrain":
        _check_crops(recipe)
    return train


def _check_crops(recipe: Recipe) -> None:
    """Refuse crops that cannot be.

    Raises:
        UsageError: With the key and its value.
    """
    crops = recipe.crops
    if crops is None:
        raise UsageError(f"{recipe.name} has no key 'crops'", "see recipes/pretrain")
    lawful = {
        "scale": 0 < crops.scale[0] <= crops.scale[1],
        "small_scale": 0 < crops.small_scale[0] <= crops.small_scale[1],
        "flip": 0 <= crops.flip <= 1,
        "foreground": 0 <= crops.foreground <= 1,
        "window": crops.window[0] < crops.window[1],
    }
    for name, right in lawful.items():
        if not right:
            raise UsageError(f"crops.{name} is {getattr(crops, name)}", "see its recipe")


def _check_raw(raw: Raw) -> None:
    """Refuse ways to measure that cannot be.

    Raises:
        UsageError: With the key and its value.
    """
    lawful = {
        "acceleration": 1 <= raw.acceleration[0] <= raw.acceleration[1],
        "center": raw.center >= 6,
        "labelled": 0 <= raw.labelled <= 1,
        "simulated": raw.simulated >= 0,
        "size": raw.size >= 32,
        "noise": 0 <= raw.noise[0] <= raw.noise[1],
    }
    for name, right in lawful.items():
        if not right:
            raise UsageError(f"raw.{name} is {getattr(raw, name)}", "see its recipe")
