"""The encoders that a method can begin with that sees whole images."""

from medssl.nets import monai_encoder, resenc, resnet, vit

Config = (
    resnet.Config
    | resenc.Config
    | vit.Config
    | monai_encoder.UNet
    | monai_encoder.SegResNet
    | monai_encoder.SwinUNETR
)
"""Numbers of an encoder, told apart by `net`; `build()` makes it."""
Net = resnet.ResNet | resenc.ResEnc | vit.ViT | monai_encoder.MonaiEncoder
"""An encoder."""


def multiple(config: Config) -> int:
    """Of which the sides of images must be multiples."""
    return 2 ** (len(config.depths) - 1) if isinstance(config, resenc.Config) else 1
