"""Nets of other tools that an encoder can be put into: their names, their weights, their features.

Nothing is fetched. MONAI's nets are built by MONAI; those of nnU-Net and torchvision have the names
of our own nets (`nets.resenc`, `nets.resnet`), so neither package is needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.init import kaiming_normal_

from medssl.core.random import stream
from medssl.nets import monai_encoder, resenc, resnet

Features = Callable[[Mapping[str, Tensor], Tensor], list[Tensor]]
"""From weights under the names of the target, and an image, to the features of the target."""

RESENC_L = resenc.Config()
SLOPE = resenc.SLOPE


@dataclass(frozen=True, kw_only=True)
class Target:
    """A net of another tool."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of all its weights, by name."""
    encoder: frozenset[str]
    """Names of those that belong to its encoder, each weight once."""
    names: Callable[[str], tuple[str, ...]]
    """Names in the target of a weight of our encoder, the first of them in `encoder`."""
    features: Features
    """In the precision of the image."""
    strides: tuple[int, ...]
    """Of its features."""
    fresh: Mapping[str, Tensor]
    """Weights that are drawn, where its loader wants a whole net."""
    net: Mapping[str, Any]
    """Its class and what it is built with."""
    load: str
    """A line of Python that loads the file, whose name is {file}."""
    forms: Callable[[Mapping[str, Tensor]], Mapping[str, dict[str, Tensor]]]
    """Further files, by ending, for loaders that want other names."""
    facts: Mapping[str, Any]
    """What other loaders want to know."""


def resnet50(config: object, channels: int) -> Target:
    """ResNet-50 under the names of torchvision; `fc` is missing."""
    del config  # there is one ResNet-50
    net = resnet.Config(in_channels=channels)
    shapes = _shapes(_sketched(net.build))
    return Target(
        shapes={**shapes, "fc.weight": (1000, 2048), "fc.bias": (1000,)},
        encoder=frozenset(shapes),
        names=_same,
        features=_rebuilt(net.build, ""),
        strides=(4, 8, 16, 32),
        fresh={},
        net={"class": "torchvision.models.resnet50", "in_channels": channels},
        load="net.load_state_dict(safetensors.torch.load_file({file!r}), strict=False)",
        forms=_no_more,
        facts={},
    )


def nnunet_resenc(config: object, channels: int) -> Target:
    """The residual encoder U-Net of nnU-Net, whole: its decoder is drawn.

    `-pretrained_weights` of nnU-Net wants every weight but `.seg_layers.`, each encoder weight
    under four names.
    """
    given = config if isinstance(config, resenc.Config) else RESENC_L
    net = resenc.Config(
        axes=given.axes, in_channels=channels, depths=given.depths, widths=given.widths
    )
    built = _sketched(net.build)
    shapes = _shapes(built)
    fresh = _nnunet_decoder(net)

    def names(key: str) -> tuple[str, ...]:
        twins = resenc.nnunet_state({key: torch.empty(0)})
        return tuple(f"{head}{k}" for head in ("encoder.", "decoder.encoder.") for k in twins)

    every = {name: shape for key, shape in shapes.items() for name in names(key)}
    facts: dict[str, Any] = {}
    if given.axes == 3 and (given.depths, given.widths) == (RESENC_L.depths, RESENC_L.widths):
        facts["nnssl_adaptation_plan"] = _plan(channels)
    return Target(
        shapes=every | {k: tuple(v.shape) for k, v in fresh.items()},
        encoder=frozenset(f"encoder.{key}" for key in shapes),
        names=names,
        features=_rebuilt(net.build, "encoder."),
        strides=built.strides,
        fresh=fresh,
        net={
            "class": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
            "n_blocks_per_stage": net.depths,
            "features_per_stage": net.widths,
            "n_conv_per_stage_decoder": 1,
            "in_channels": channels,
        },
        load=(
            "torch.save({{'network_weights': safetensors.torch.load_file({file!r})}}, 'F.pth')"
            "  # then nnUNetv2_train ... -pretrained_weights F.pth"
        ),
        forms=_no_more,
        facts=facts,
    )


def monai_unet(config: object, channels: int) -> Target:
    """`monai.networks.nets.UNet`; the way up is missing."""
    given = config if isinstance(config, monai_encoder.UNet) else monai_encoder.UNet()
    words: dict[str, Any] = {
        "spatial_dims": given.axes,
        "in_channels": channels,
        "out_channels": 2,
        "channels": given.channels,
        "strides": (2,) * (len(given.channels) - 1),
        "num_res_units": given.num_res_units,
    }

    def build() -> nn.Module:
        from monai.networks.nets.unet import UNet

        return UNet(**words)

    def features(net: Any, image: Tensor) -> list[Tensor]:
        part, hooked = net.model, []
        for _ in words["strides"]:
            hooked.append(part[0])
            part = part[1].submodule
        found: dict[nn.Module, Tensor] = {}
        handles = [
            one.register_forward_hook(lambda m, _, out: found.update({m: out}))
            for one in (*hooked[:-1], part)
        ]
        net(image)
        for handle in handles:
            handle.remove()
        return [found[one] for one in (*hooked[:-1], part)]

    ours = monai_encoder.UNet(
        axes=given.axes,
        in_channels=channels,
        channels=given.channels,
        num_res_units=given.num_res_units,
    )
    return _of_monai(build, features, ours, {"class": "monai.networks.nets.UNet", **words})


def monai_segresnet(config: object, channels: int) -> Target:
    """`monai.networks.nets.SegResNet`; the way up is missing."""
    given = config if isinstance(config, monai_encoder.SegResNet) else monai_encoder.SegResNet()
    words: dict[str, Any] = {
        "spatial_dims": given.axes,
        "init_filters": given.init_filters,
        "in_channels": channels,
        "out_channels": 2,
        "blocks_down": given.blocks_down,
        "blocks_up": (1,) * (len(given.blocks_down) - 1),
    }

    def build() -> nn.Module:
        from monai.networks.nets.segresnet import SegResNet

        return SegResNet(**words)

    ours = monai_encoder.SegResNet(
        axes=given.axes,
        in_channels=channels,
        init_filters=given.init_filters,
        blocks_down=given.blocks_down,
    )
    return _of_monai(
        build,
        lambda net, image: list(net.encode(image)[1]),
        ours,
        {"class": "monai.networks.nets.SegResNet", **words},
    )


def monai_swinunetr(config: object, channels: int) -> Target:
    """`monai.networks.nets.SwinUNETR`: `swinViT`, whose convolutions beside it are missing.

    Its `load_from` wants other names, which are a second file.
    """
    given = config if isinstance(config, monai_encoder.SwinUNETR) else monai_encoder.SwinUNETR()
    words: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": 2,
        "depths": given.depths,
        "num_heads": given.num_heads,
        "feature_size": given.feature_size,
        "spatial_dims": given.axes,
    }

    def build() -> nn.Module:
        from monai.networks.nets.swin_unetr import SwinUNETR

        return SwinUNETR(**words)

    def load_from(tensors: Mapping[str, Tensor]) -> Mapping[str, dict[str, Tensor]]:
        def name(key: str) -> str:
            key = key.replace("swinViT.", "module.", 1)
            return key.replace("mlp.linear1", "mlp.fc1").replace("mlp.linear2", "mlp.fc2")

        inside = {name(k): v for k, v in tensors.items() if k.startswith("swinViT.")}
        return {".load_from.safetensors": inside}

    ours = monai_encoder.SwinUNETR(
        axes=given.axes,
        in_channels=channels,
        feature_size=given.feature_size,
        depths=given.depths,
        num_heads=given.num_heads,
    )
    return _of_monai(
        build,
        lambda net, image: list(net.swinViT(image)),
        ours,
        {"class": "monai.networks.nets.SwinUNETR", **words},
        load_from,
    )


TARGETS: Mapping[str, Callable[[object, int], Target]] = {
    "monai-unet": monai_unet,
    "monai-segresnet": monai_segresnet,
    "monai-swinunetr": monai_swinunetr,
    "nnunet-resenc": nnunet_resenc,
    "resnet50": resnet50,
}
"""By the word of `medssl export --to`; each takes the `Config` of an encoder and its channels."""


def _of_monai(
    build: Callable[[], nn.Module],
    features: Callable[[Any, Tensor], list[Tensor]],
    ours: Any,
    net: Mapping[str, Any],
    forms: Callable[[Mapping[str, Tensor]], Mapping[str, dict[str, Tensor]]] | None = None,
) -> Target:
    """A net that MONAI builds; ours says which part of it is the encoder."""
    whole, part = _unused(build), _unused(ours.build)

    def of(tensors: Mapping[str, Tensor], image: Tensor) -> list[Tensor]:
        made = _unused(build).eval()
        made.load_state_dict(dict(tensors), strict=False)
        return features(made.to(image.dtype), image)

    return Target(
        shapes=_shapes(whole),
        encoder=frozenset(part.state_dict()),
        names=_same,
        features=of,
        strides=tuple(part.strides),
        fresh={},
        net=net,
        load="net.load_state_dict(safetensors.torch.load_file({file!r}), strict=False)",
        forms=forms or _no_more,
        facts={},
    )


def _sketched(build: Callable[[], Any]) -> Any:
    """One of our own nets without numbers, for its names and shapes."""
    with torch.device("meta"):
        return build()


def _unused(build: Callable[[], Any]) -> Any:
    """A net whose first weights do not matter; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _rebuilt(build: Callable[[], Any], prefix: str) -> Features:
    """The features of our own net with weights whose names begin with a prefix."""

    def features(tensors: Mapping[str, Tensor], image: Tensor) -> list[Tensor]:
        net = _unused(build).eval()
        wanted = net.state_dict()
        held = {k: tensors[prefix + k] for k in wanted if prefix + k in tensors}
        net.load_state_dict(held, strict=False)
        return list(net.to(image.dtype).features(image))

    return features


def _same(key: str) -> tuple[str, ...]:
    return (key,)


def _no_more(tensors: Mapping[str, Tensor]) -> Mapping[str, dict[str, Tensor]]:
    del tensors
    return {}


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def _nnunet_decoder(net: resenc.Config) -> dict[str, Tensor]:
    """A drawn decoder of nnU-Net with one convolution for each stage; no layers of classes."""
    generator = stream(0, "nnunet decoder")
    kernel = (3,) * net.axes
    found: dict[str, Tensor] = {}

    def drawn(*shape: int) -> Tensor:
        return kaiming_normal_(torch.empty(shape), a=SLOPE, generator=generator)

    for k, (below, skip) in enumerate(
        zip(reversed(net.widths[1:]), reversed(net.widths[:-1]), strict=True)
    ):
        found[f"decoder.transpconvs.{k}.weight"] = drawn(below, skip, *(2,) * net.axes)
        found[f"decoder.transpconvs.{k}.bias"] = torch.zeros(skip)
        layer = {
            "conv.weight": drawn(skip, 2 * skip, *kernel),
            "conv.bias": torch.zeros(skip),
            "norm.weight": torch.ones(skip),
            "norm.bias": torch.zeros(skip),
        }
        head = f"decoder.stages.{k}.convs.0."
        found |= resenc.nnunet_state({head + name: value for name, value in layer.items()})
    return found


def _plan(channels: int) -> dict[str, Any]:
    """What nnU-Net's trainer of pretrained weights asks for, beside what the encoder saw."""
    stem = "encoder.stem.convs.0."
    return {
        "architecture_plans": {
            "arch_class_name": "ResEncL",
            "arch_kwargs": None,
            "arch_kwargs_requiring_import": None,
        },
        "pretrain_num_input_channels": channels,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": [f"{stem}conv", f"{stem}all_modules.0"],
        "key_to_lpe": None,
    }
