"""Encoders in nets of other tools: every key told, the same features, refused where not."""

import json

import pytest
import torch

from medssl import api
from medssl.core.errors import UsageError, WeightsError
from medssl.engine.encoders import load_encoder
from medssl.engine.targets import TARGETS
from medssl.io import weights
from medssl.nets import resenc, resnet

RESENC = {"net": "resenc", "axes": 3, "depths": [1, 1, 1], "widths": [4, 6, 8]}
UNET = {"net": "monai_unet", "axes": 3, "channels": [4, 8, 8], "num_res_units": 2}
SEGRESNET = {"net": "monai_segresnet", "axes": 3, "init_filters": 8, "blocks_down": [1, 1, 2]}
SWIN = {"net": "monai_swinunetr", "axes": 3, "feature_size": 12, "num_heads": [3, 3, 3, 3]}


def spark(net, **more):
    return {"name": "spark", "net": net, "decoder_width": 8, **more}


def listed(path):
    return json.loads(path.with_suffix(".keymap.json").read_text())


def test_resnet50_with_three_channels(pretrained, tmp_path):
    run = pretrained(method=spark({"net": "resnet"}), size=(32, 32))
    out = tmp_path / "r50.safetensors"
    done = api.export(run, out, to="resnet50", channels=3)
    assert done.record["difference"] < 1e-5
    found = listed(out)
    states = {k["target"]: k["state"] for k in found["keys"]}
    assert states["conv1.weight"] == "adapted"
    assert states["layer4.2.bn3.running_var"] == "loaded"
    assert states["fc.weight"] == "missing"
    assert found["counts"] == {"loaded": 317, "adapted": 1, "missing": 2}
    with torch.device("meta"):
        net = resnet.Config(in_channels=3).build()
    net.load_state_dict(weights.read(out), assign=True)


def whole(unet):
    """What nnU-Net builds of a plan."""
    return unet.ResidualEncoderUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=RESENC["widths"],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=(1, 2, 2),
        n_blocks_per_stage=RESENC["depths"],
        num_classes=2,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


def test_nnunet_has_every_key_of_its_net(pretrained, tmp_path):
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    run = pretrained(method=spark(RESENC, block=[4, 4, 4]), size=(8, 8, 8))
    out = tmp_path / "resenc"
    done = api.export(run, out, to="nnunet-resenc")
    held = weights.read(done.files[0])
    with torch.random.fork_rng(devices=[]):
        net = whole(unet).eval()
    wanted = {k: v.shape for k, v in net.state_dict().items() if ".seg_layers." not in k}
    assert {k: v.shape for k, v in held.items()} == wanted, "its loader asserts every key"
    net.load_state_dict(held, strict=False)
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_encoder(run, {}).method.features(x)
        for a, b in zip(net.encoder(x), ours, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert "torch.save" in done.record["load"]
    assert done.record["size"] == [8, 8, 8]
    assert "nnssl_adaptation_plan" not in done.record, "its trainer knows ResEnc-L alone"
    large = TARGETS["nnunet-resenc"](resenc.Config(), 1)
    assert large.facts["nnssl_adaptation_plan"]["key_to_stem"] == "encoder.stem"


@pytest.mark.parametrize(
    ("to", "net", "size"),
    [
        ("monai-unet", UNET, (8, 8, 8)),
        ("monai-segresnet", SEGRESNET, (8, 8, 8)),
    ],
)
def test_monai(pretrained, tmp_path, to, net, size):
    run = pretrained(method=spark(net), size=size)
    out = tmp_path / "net.safetensors"
    done = api.export(run, out, to=to, channels=2)
    found = listed(out)
    assert found["share_of_encoder"] == 1
    assert found["difference"] < 1e-5
    assert found["counts"]["adapted"] >= 1
    assert found["counts"]["missing"] > 0
    assert "unexpected" not in found["counts"]
    assert done.record["net"]["in_channels"] == 2


@pytest.mark.slow
def test_swinunetr_in_both_forms(pretrained, tmp_path):
    from monai.networks.nets.swin_unetr import SwinUNETR

    run = pretrained(method={"name": "mae", "net": SWIN}, size=(32, 32, 32))
    out = tmp_path / "swin.safetensors"
    done = api.export(run, out, to="monai-swinunetr")
    assert done.record["difference"] < 1e-5
    with torch.random.fork_rng(devices=[]):
        a, b = (SwinUNETR(1, 2, feature_size=12, num_heads=(3, 3, 3, 3)).eval() for _ in range(2))
    a.load_state_dict(weights.read(out), strict=False)
    b.load_from({"state_dict": weights.read(tmp_path / "swin.load_from.safetensors")})
    for key, value in a.swinViT.state_dict().items():
        assert torch.equal(value, b.swinViT.state_dict()[key]), key


def test_nothing_is_written_below_95_percent(pretrained, tmp_path, medssl):
    run = pretrained()
    for to in ("resnet50", "nnunet-resenc"):
        with pytest.raises(WeightsError, match="% of the encoder of"):
            api.export(run, tmp_path / "net.safetensors", to=to)
    code, _, err = medssl("export", run, "--to", "resnet50", "-o", tmp_path / "net")
    assert code == 4, err
    assert list(tmp_path.iterdir()) == [run]


def test_what_cannot_be(pretrained, tmp_path):
    run = pretrained()
    with pytest.raises(UsageError, match="pickles are never written"):
        api.export(run, tmp_path / "net.pth", to="resnet50")
    with pytest.raises(UsageError, match="--to is"):
        api.export(run, tmp_path / "net", to="vgg")
    file = run / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or another file"):
        api.export(run, tmp_path / "net", to="resnet50")
