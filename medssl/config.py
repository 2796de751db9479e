"""Recipes: YAML to frozen dataclasses, and what recipes and methods there are. Never torch."""

import ast
import copy
import dataclasses
import difflib
import importlib.resources
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from medssl.core.errors import UsageError, printable

TASKS = ("denoise", "recon", "pretrain", "segment")
LARGEST_RECIPE = 1 << 20
"""Characters; a recipe is a page, not a data set."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Train:
    """How a method that learns from the scan is fitted."""

    steps: int
    """Optimiser steps."""
    lr: float
    """Largest learning rate."""
    optimiser: Literal["adam", "adamw", "sgd", "lamb", "lars"] = "adam"
    weight_decay: float = 0.0
    weight_decay_end: float | None = None
    """Where the decay of weights goes, along a cosine; null leaves it as it is."""
    decay_all: bool = True
    """False spares biases and the weights of norms."""
    momentum: float = 0.9
    """Of SGD and LARS."""
    nesterov: bool = False
    """Whether SGD looks ahead."""
    beta_1: float = 0.9
    """Decay of the mean gradient of Adam."""
    schedule: Literal["constant", "cosine", "poly", "onecycle", "drops"] = "constant"
    warmup: int = 0
    """Steps over which the learning rate rises to its largest value, half of all at most."""
    drops: int = 1
    """How often, evenly spaced, "drops" multiplies the learning rate with `drop`."""
    drop: float = 0.1
    clip: float | None = None
    """Largest norm of the gradient; null does not bound it."""
    ema: float = 0.0
    """Decay of the running mean of the weights that is kept in the end; 0 keeps the last ones."""
    check_every: int | None = None
    """Steps between looks at a held-back batch, whose best weights are kept; null never looks."""
    crop: int | None = None
    """Side of the random square or cubic crops in voxels; null takes whole slices."""
    batch: int = 1
    """Crops in one step: of all processes and of all parts together."""
    accumulate: int = 1
    """Parts of a batch that are looked at one after the other before the step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the layers; losses, norms and clusters are fp32 in any case."""
    shard: bool = False
    """Whether processes share out the weights of the method, for nets that are large beside the
    memory of a GPU."""
    compile: bool = False
    """Whether torch compiles the loss."""
    deterministic: bool = False
    """Whether a step on a GPU is the same one each time, at the cost of speed."""
    tensorboard: bool = False
    """Whether losses are also written for TensorBoard, in the folder of the run."""
    slices: int = 4
    """Slices of a volume, evenly spaced, that a method learns from which sees slices."""
    held_out: float = 0.1
    """Share of the patients of an archive that `medssl train` only tests on."""
    save_every: int = 500
    """Steps between two checkpoints of `medssl train`."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """How raw scans are measured for a method that learns from them."""

    acceleration: tuple[float, float] = (4.0, 8.0)
    """Least and largest, drawn evenly for each pattern; fully sampled scans are measured so."""
    pattern: Literal["poisson", "lines", "both"] = "poisson"
    """Points that keep their distance, whole lines along the first axis, or either."""
    center: int = 24
    """Side of the fully sampled centre in points, at most; lines of it where lines are drawn."""
    labelled: float = 1.0
    """Share of the fully sampled scans whose truth may be used; the others are measured once, with
    a pattern of their own, as if they had been undersampled by the scanner."""
    simulated: int = 0
    """Generated scans that join those of the folder."""
    size: int = 128
    """Side of generated scans."""
    noise: tuple[float, float] = (0.0, 0.01)
    """Least and largest noise of generated scans, where images are about 1. It is in their truth
    too, as it is in that of real ones."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """How the images of a store are cut and changed for a method that is pretrained on them."""

    size: tuple[int, ...]
    """Sides of images and large views in voxels, 2 for slices and 3 for volumes."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Least and largest share of what `size` holds at the spacing of the store: below 1 a view
    shows less and is enlarged, above 1 more and is reduced."""
    whole: bool = False
    """Whether 1 in `scale` is the whole slice instead, as for photographs."""
    small_size: tuple[int, ...] | None = None
    """Sides of small views."""
    small_scale: tuple[float, float] = (0.1, 0.35)
    """Shares of what a large view of `scale` 1 shows."""
    flip: float = 0.5
    """Chance of a flip along each axis."""
    rotate: float = 0.0
    """Largest angle in degrees by which views are turned."""
    change: float = 1.0
    """Strength of the changes of contrast, brightness, bias field, blur and noise in views; 0 for
    none. Images that no view is made of are never changed."""
    window: tuple[float, float] = (-1000.0, 1000.0)
    """Least and largest HU of CT; other modalities are normalised by their own foreground."""
    foreground: float = 0.2
    """Share of a crop that must be foreground, if a few draws find such a one."""
    balance: bool = True
    """Whether modalities come in equal numbers, up to three times their share."""
    thin_bits: int = 4
    """Neighbouring slices that differ in so many bits of their hash, or fewer, count as one."""


@dataclass(frozen=True, kw_only=True)
class Expect:
    """The number that a recipe is known for."""

    metric: str
    value: float
    tolerance: float
    protocol: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One file of `recipes/`: which method with which numbers."""

    task: Literal["denoise", "recon", "pretrain", "segment"]
    name: str
    """Of the recipe: its file name without `.yaml`."""
    method: str
    """The module below `medssl/<task>/`; `average` for a mean of other recipes."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's `Config`."""
    average: tuple["Recipe", ...] = ()
    """Recipes whose results are averaged; none for a method of its own."""
    additions: tuple["Recipe", ...] = ()
    """Recipes that join the average of a scan where they are expected to lower its error."""
    train: Train | None = None
    """None for a filter that learns nothing."""
    raw: Raw | None = None
    """For methods that learn from raw scans."""
    crops: Crops | None = None
    """For methods that are pretrained on a store."""
    strength: float = 1.0
    """Share of the change that is applied; see `medssl denoise --strength`."""
    seed: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the expected number was measured on."""
    expect: Expect | None = None


def methods(task: str = "denoise") -> dict[str, str]:
    """Methods of a task: module name to the first line of its docstring. The folder decides."""
    found = {}
    for path in sorted(Path(__file__).with_name(task).glob("*.py")):
        if not path.name.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.partition("\n")[0]
    return found


def reference(task: str, method: str) -> str:
    """What a method's docstring cites, on one line."""
    path = Path(__file__).with_name(task) / f"{method}.py"
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("Reference:")[2].split())


def recipes(task: str = "denoise") -> tuple[str, ...]:
    """Names of the recipes of a task."""
    folder = importlib.resources.files("medssl.recipes") / task
    if not folder.is_dir():
        return ()
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def load(task: str, name: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or by file, with some of its values changed.

    Args:
        task: `denoise`, `recon`, `pretrain` or `segment`.
        name: A recipe's name (hyphens and underscores do not matter) or the path of a YAML file.
        changes: Dotted keys, as in `{"method.block": [4, 4, 4], "train.steps": 10}`.

    Raises:
        UsageError: Unknown name or key (with the nearest known one), or a value of another type.
    """
    file: Traversable
    if name.endswith((".yaml", ".yml")):
        file, stem = Path(name), Path(name).stem
        if not file.is_file():
            raise UsageError("the recipe does not exist", "check its path", file=name)
    else:
        known = recipes(task)
        stem = next((one for one in known if _bare(one) == _bare(name)), "")
        if not stem:
            raise UsageError(
                f"there is no {task} method {printable(name)!r}",
                nearest(name.replace("-", "_"), known) + f"`medssl methods` lists {len(known)}",
            )
        file = importlib.resources.files("medssl.recipes") / task / f"{stem}.yaml"
    tree = parse(file.read_text(encoding="utf-8"), file.name)
    return _recipe(tree, task, stem, changes or {}, file.name)


def task_of(file: str) -> str:
    """The task of a recipe's file.

    Raises:
        UsageError: There is no such file, or it names no task.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError("the recipe does not exist", "check its path", file=file)
    task = parse(path.read_text(encoding="utf-8"), path.name).get("task")
    if task not in TASKS:
        raise UsageError(f"the task is {printable(task)!r}", "see recipes/", file=path.name)
    return str(task)


def recorded(tree: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that `as_tree` wrote, with some of its values changed.

    Args:
        tree: Plain values.
        changes: Dotted keys, as for `load`.
        where: Name of the file, for messages.

    Raises:
        UsageError: Keys or values that no recipe has.
    """
    copied = copy.deepcopy(dict(tree))
    task, name = copied.get("task"), str(copied.pop("name", ""))
    if task not in TASKS:
        raise UsageError(f"the task is {printable(task)!r}", "see recipes/", file=where)
    return _recipe(copied, task, name, changes, where)


def as_tree(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain values, laid out like its file, with the `Config` as it was settled."""
    tree = {
        "task": recipe.task,
        "name": recipe.name,
        "method": {"name": recipe.method, **values},
        "strength": recipe.strength,
        "seed": recipe.seed,
    }
    parts = {"train": recipe.train, "raw": recipe.raw, "crops": recipe.crops}
    return tree | {k: dataclasses.asdict(v) for k, v in parts.items() if v is not None}


def text_of(tree: Mapping[str, Any]) -> str:
    """The YAML of what `as_tree` gave, which `load` reads again."""
    return yaml.safe_dump(_plain(tree), sort_keys=False, default_flow_style=None)


def _plain(value: Any) -> Any:
    """Mappings and lists for YAML, which has no tuples."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _recipe(
    tree: dict[str, Any], task: str, name: str, changes: Mapping[str, Any], where: str
) -> Recipe:
    """A recipe from the tree of its file."""
    for key, value in changes.items():
        _assign(tree, key, value)
    if "average" in tree:
        return _average(task, tree, name, where)
    method = tree.pop("method", None)
    if not isinstance(method, dict) or "name" not in method:
        raise UsageError("a recipe needs `method: {name: ...}`", "see recipes/", file=where)
    found = str(method.pop("name")).replace("-", "_")
    if found not in methods(task):
        raise UsageError(
            f"there is no module medssl/{task}/{found}.py", nearest(found, methods(task))
        )
    return construct(Recipe, tree | {"name": name, "method": found, "values": method}, where)


def _average(task: str, tree: dict[str, Any], stem: str, where: str) -> Recipe:
    """A mean of recipes: names, or mappings of a `name` and other values of its method."""
    if "method" in tree:
        raise UsageError(f"{stem} averages methods", "change one of them alone", file=where)
    for key in ("average", "additions"):
        words, members = tree.get(key, []), []
        if not isinstance(words, list):
            raise UsageError(f"{key} is not a list of recipes", "see recipes/", file=where)
        for word in words:
            values = dict(word) if isinstance(word, dict) else {"name": word}
            name = str(values.pop("name", ""))
            if _bare(name) == _bare(stem):
                raise UsageError(f"{stem} averages itself", "name other recipes", file=where)
            member = load(task, name, {f"method.{k}": v for k, v in values.items()})
            if member.average:
                raise UsageError(f"{name} is an average itself", "name its members", file=where)
            members.append(member)
        tree[key] = tuple(members)
    if not tree["average"]:
        raise UsageError("average is empty", "name at least one recipe", file=where)
    return construct(Recipe, tree | {"name": stem, "method": "average"}, where)


def _bare(name: str) -> str:
    """A name as papers write it in many ways: C-BSN, cbsn, c_bsn."""
    return name.lower().replace("-", "").replace("_", "")


def parse(text: str, name: str) -> dict[str, Any]:
    """A YAML mapping, refused with its line when it is not one.

    Raises:
        UsageError: Too long, not YAML, duplicate keys, Python tags, or not a mapping.
    """
    if len(text) > LARGEST_RECIPE:
        raise UsageError(f"is {len(text)} characters long", "a recipe is a page", file=name)
    try:
        tree = yaml.load(text, Loader=_Strict)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UsageError(
            f"line {line}: {error.problem or 'not YAML'}", "see recipes/", file=name
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError("is not YAML", "see recipes/", file=name) from error
    if not isinstance(tree, dict):
        raise UsageError("is not a mapping of keys to values", "see recipes/", file=name)
    return tree


def construct(kind: type[T], tree: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from plain values, every key and type checked.

    Raises:
        UsageError: With the key, its value, and the nearest known key.
    """
    assert dataclasses.is_dataclass(kind)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in tree:
        if key not in fields:
            raise UsageError(
                f"unknown key {printable(key)!r}",
                nearest(str(key), fields) or f"known: {', '.join(fields)}",
                file=where,
            )
    for name, one in fields.items():
        no_default = one.default is dataclasses.MISSING and (
            one.default_factory is dataclasses.MISSING
        )
        if no_default and name not in tree:
            raise UsageError(f"key {name!r} is missing", "add it", file=where)
    return kind(**{k: _typed(hints[k], v, k, where) for k, v in tree.items()})


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """`did you mean ...? ` for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]!r}? " if close else ""


def scalar(text: str) -> Any:
    """The value of `--set key=value`: a YAML scalar or flow list."""
    return yaml.load(text, Loader=_Strict)


class _Strict(yaml.SafeLoader):
    """Plain values only; a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {printable(key.value)!r} is given twice",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UsageError(f"{printable(key)!r} is not a key of the recipe", "see its file")
    tree[last] = value


def _typed(hint: Any, value: Any, key: str, where: str) -> Any:
    """The value, converted where that loses nothing, refused otherwise."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is Mapping or hint is Mapping:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [a for a in arguments if a is not type(None)]
        for one in rest[:-1]:
            try:
                return _typed(one, value, key, where)
            except UsageError:
                continue
        return _typed(rest[-1], value, key, where)
    if origin is Literal:
        if value in arguments:
            return value
        choices = ", ".join(map(str, arguments))
        raise UsageError(f"{key} is {printable(value)!r}, it is one of {choices}", file=where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return construct(hint, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[0] if arguments[-1] is Ellipsis else None
        if inner is not None or len(value) == len(arguments):
            kinds = [inner] * len(value) if inner is not None else list(arguments)
            return tuple(_typed(k, v, key, where) for k, v in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    lawful = isinstance(hint, type) and isinstance(value, hint)
    if lawful and not (hint is int and isinstance(value, bool)):
        return value
    remedy = f"it must be {getattr(hint, '__name__', hint)}"
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        remedy = f"YAML reads it as text; write {value.lower().replace('e', '.0e')}"
    raise UsageError(f"{key} is {printable(value)!r}", remedy, file=where)
