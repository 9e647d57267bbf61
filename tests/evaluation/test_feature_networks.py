"""Inception and DINOv2 of their exact architecture with random weights: published ones cannot be had in tests."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers.half_closed import half_closed
from helpers.random_inception import random_inception
from recipe.evaluation import dinov2, features, inception
from recipe.evaluation.dinov2 import DinoV2, VisionTransformer, resized, resized_by_pillow
from recipe.evaluation.feature_set import EvaluationError
from recipe.evaluation.features import by_import_path, find_network
from recipe.evaluation.network_weights import PublishedWeights, WeightsChoice, load_weights
from recipe.storage.files import file_sha256

CPU = torch.device("cpu")
TINY = {"width": 32, "depth": 2, "heads": 4, "patch": 14, "grid": 4}


def pictures(count: int = 2, size: int = 20, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def random_transformer(**sizes: int) -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(**(TINY | sizes)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return network


# DINOv2


def their_names(name: str) -> str:
    """How transformers calls a parameter of ours."""
    for ours, theirs in (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("cls_token", "embeddings.cls_token"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("mask_token", "embeddings.mask_token"),
        ("blocks.", "encoder.layer."),
        ("attn.proj", "attention.output.dense"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
    ):
        name = name.replace(ours, theirs)
    return name.replace("norm.", "layernorm.") if name.startswith("norm.") else name


def of_transformers(network: VisionTransformer) -> nn.Module:
    """Hugging Face's implementation with the same weights."""
    from transformers import Dinov2Config, Dinov2Model

    size = TINY["patch"] * TINY["grid"]
    config = Dinov2Config(
        hidden_size=TINY["width"],
        num_hidden_layers=TINY["depth"],
        num_attention_heads=TINY["heads"],
        image_size=size,
        patch_size=TINY["patch"],
    )
    state = {}
    for name, tensor in network.state_dict().items():
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[their_names(name).replace("attn.qkv", f"attention.attention.{part}")] = piece
        else:
            state[their_names(name)] = tensor
    model = Dinov2Model(config).eval()
    model.load_state_dict(state)
    return model


def test_vision_transformer_equals_another_implementation():
    """At the size that its positions are for: transformers resizes them in another way than the authors' code."""
    network = random_transformer()
    x = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = of_transformers(network)(x).last_hidden_state[:, 0]
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def cubic(values: Tensor, at: float) -> float:
    """Cubic convolution with a = -0.75 at a place between values, as torch has it."""
    first = int(at) - 1
    total = 0.0
    for index in range(first, first + 4):
        t = abs(at - index)
        near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
        total += float(values[index]) * (near if t <= 1 else far)
    return total


def test_positions_of_another_grid():
    """As the authors' code: sampled at (i + 0.5) 37 / 16.1 - 0.5, and not at (i + 0.5) 37 / 16 - 0.5."""
    network = VisionTransformer(width=2, depth=0, grid=37, heads=1)
    values = torch.randn(37, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.pos_embed[0, 1:, 0] = values.repeat_interleave(37)
        network.pos_embed[0, 1:, 1] = values.repeat(37)
        network.pos_embed[0, 0] = -7
        found = network.positions(16, 16)
    assert found.shape == (1, 257, 2) and found[0, 0].tolist() == [-7, -7]
    rows, columns = found[0, 1:, 0].view(16, 16), found[0, 1:, 1].view(16, 16)
    for index in range(1, 15):
        expected = cubic(values, (index + 0.5) * 37 / 16.1 - 0.5)
        assert float(rows[index, 5]) == pytest.approx(expected, abs=1e-4)
        assert float(columns[5, index]) == pytest.approx(expected, abs=1e-4)


def test_the_published_file_fits():
    """Names and number of parameters, as the published ViT-L/14 has them: 304 million."""
    with torch.device("meta"):
        network = VisionTransformer()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == 304_368_640
    assert shapes["pos_embed"] == (1, 1370, 1024) and shapes["patch_embed.proj.weight"] == (1024, 3, 14, 14)
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024) and shapes["blocks.0.mlp.fc1.bias"] == (4096,)
    assert {"cls_token", "mask_token", "norm.bias", "blocks.7.ls1.gamma", "blocks.7.norm2.weight"} <= shapes.keys()


def test_two_ways_to_resize():
    """Pillow's own result; and the other one, which differs by rounding."""
    given = pictures(2, 300) // 2 + 64  # Pillow cuts off what lies beyond after each of its two passes
    found, other = resized_by_pillow(given), resized(given)
    for one, result in zip(given, found, strict=True):
        image = Image.fromarray(one.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        assert np.array_equal(result.permute(1, 2, 0).numpy(), np.asarray(image))
    assert 0 < (found - other).abs().max() <= 1.5
    assert resized(pictures(2, 300)).max() > 255


def test_dinov2_normalises():
    """Pictures of the mean colour are all zeros to the network."""
    seen = []
    network = random_transformer(grid=16)
    network.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    given = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 30, 30)
    found, logits = DinoV2(network.state_dict(), "dinov2", CPU, network)(given)
    assert found.shape == (1, 32) and logits is None
    assert seen[0].shape == (1, 3, 224, 224) and seen[0].abs().max() < 0.01
    white, _ = DinoV2(network.state_dict(), "dinov2", CPU, network)(torch.full_like(given, 255))
    expected = [(1 - mean) / std for mean, std in zip(dinov2.MEAN, dinov2.STD, strict=True)]
    assert seen[1][0, :, 0, 0].tolist() == pytest.approx(expected)
    assert not torch.allclose(found, white)


@pytest.mark.soak
def test_dinov2_of_its_full_size(tmp_path: Path):
    """1.2 GB of random weights under the published names, from their file."""
    torch.manual_seed(0)
    torch.save(VisionTransformer().state_dict(), tmp_path / dinov2.WEIGHTS.file)
    network = find_network("dinov2", CPU, WeightsChoice(tmp_path, "any"))
    found, _ = network(pictures(2, 64))
    assert network.title == "FD_DINOv2" and found.shape == (2, 1024) and found.isfinite().all()
    assert not torch.allclose(found[0], found[1])
    other = find_network("dinov2-pil", CPU, WeightsChoice(tmp_path, "any"))
    assert other.digest != network.digest
    with pytest.raises(EvaluationError, match="which is not known here; compare it with one that you trust"):
        find_network("dinov2", CPU, WeightsChoice(tmp_path))


# Weights


@functools.cache
def inception_of(folder: Path) -> features.FeatureNetwork:
    return find_network("inception", CPU, random_inception(folder))


@pytest.fixture(scope="module")
def inception_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inception")


def test_inception(inception_folder: Path):
    """Features and logits in one pass; grey pictures as three equal channels."""
    network = inception_of(inception_folder)
    found, logits = network(pictures())
    assert found.shape == (2, 2048) and logits is not None and logits.shape == (2, 1008)
    assert network.title == "FID" and network.has_logits
    grey = pictures(1, channels=1)
    for ours, repeated in zip(network(grey), network(grey.repeat(1, 3, 1, 1)), strict=True):
        assert ours is not None and repeated is not None and torch.equal(ours, repeated)


def test_unknown_weights_are_refused(inception_folder: Path):
    """Unless they are named by their digest, or it does not matter."""
    inception_of(inception_folder)
    digest = file_sha256(inception_folder / inception.WEIGHTS.file)
    with pytest.raises(EvaluationError, match=f"has the SHA-256 {digest}, not 6726825d...; get it again, or take"):
        find_network("inception", CPU, WeightsChoice(inception_folder))
    with pytest.raises(EvaluationError, match=f"--accept-weights {'0' * 64}: .* has the SHA-256 {digest}"):
        find_network("inception", CPU, WeightsChoice(inception_folder, "0" * 64))
    accepted, _ = load_weights(inception.WEIGHTS, WeightsChoice(inception_folder, digest), "inception")
    assert len(accepted) > 100


def test_weights_of_another_network_are_refused(tmp_path: Path):
    choice = WeightsChoice(tmp_path, "any")
    for name, file in ("inception", inception.WEIGHTS.file), ("dinov2", dinov2.WEIGHTS.file):
        torch.save({"a": torch.zeros(2)}, tmp_path / file)
        with pytest.raises(EvaluationError, match=f"{file}: does not hold"):
            find_network(name, CPU, choice)


class Mark:
    """A pickle of it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["hostile", "garbage", "list", "numbers"])
def test_what_is_no_file_of_weights(content: str, tmp_path: Path):
    """Nothing in it is run."""
    path = tmp_path / dinov2.WEIGHTS.file
    objects = {"hostile": {"a": Mark(tmp_path / "mark")}, "list": [torch.zeros(2)], "numbers": {"a": 1}}
    if content == "garbage":
        path.write_bytes(b"no weights")
    else:
        torch.save(objects[content], path)
    with pytest.raises(EvaluationError) as caught:
        find_network("dinov2", CPU, WeightsChoice(tmp_path, "any"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()


class Server:
    """Serves one file, or its beginning alone."""

    def __init__(self, data: bytes):
        server = self
        self.data, self.length, self.asked = data, len(data), 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                self.send_response(200 if self.path == "/weights.pth" else 404)
                self.send_header("Content-Length", str(len(server.data)))
                self.end_headers()
                self.wfile.write(server.data[: server.length])

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "weights.pth")
    server = Server((tmp_path / "weights.pth").read_bytes())
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_weights_are_fetched_once_and_whole(server: Server, tmp_path: Path):
    digest = file_sha256(tmp_path / "weights.pth")
    published = PublishedWeights("weights.pth", f"{server.url}/weights.pth", digest[:8])
    server.length = 100
    with pytest.raises(EvaluationError, match="cannot be fetched"):
        load_weights(published, WeightsChoice(), "mine")
    folder = tmp_path / "hub" / "checkpoints"
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".tmp-lock")] == []
    server.length = len(server.data)
    for _ in range(2):
        found, sha256 = load_weights(published, WeightsChoice(), "mine")
        assert torch.equal(found["a"], torch.arange(1000.0)) and sha256 == digest
    assert server.asked == 2


def test_without_the_network(server: Server, tmp_path: Path):
    """One line that names address, place and option."""
    nowhere = PublishedWeights("weights.pth", "http://127.0.0.1:9/weights.pth", "00")
    with pytest.raises(EvaluationError) as caught:
        load_weights(nowhere, WeightsChoice(), "mine")
    message = str(caught.value)
    assert "\n" not in message and nowhere.url in message and "--weights" in message
    assert str(tmp_path / "hub" / "checkpoints" / "weights.pth") in message
    with pytest.raises(EvaluationError, match=r"cannot be fetched .*404") as caught:
        load_weights(PublishedWeights("weights.pth", f"{server.url}/other", ""), WeightsChoice(), "mine")
    assert half_closed() == []
    with pytest.raises(EvaluationError, match=f"--weights {tmp_path}/none: holds no weights.pth; get it from"):
        load_weights(nowhere, WeightsChoice(tmp_path / "none"), "mine")


# Networks by import path


class Own(nn.Module):
    """A network of a user's."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3)) * self.scale


def test_a_network_by_import_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    Path("own_features.py").write_text(
        "def mean(x):\n    return x.float().mean((2, 3))\n\ndef whole(x):\n    return x\n"
    )
    network = find_network("own_features:mean", CPU)
    assert network.title == "FD (mean)" and network(pictures(3))[0].shape == (3, 3)
    with pytest.raises(EvaluationError, match=r"own_features:whole: gives \[2, 3, 20, 20\] for 2 pictures"):
        find_network("own_features:whole", CPU)(pictures(2))
    for name, said in (
        ("inceptoin", "must be inception, dinov2, dinov2-pil, or MODULE:FUNCTION"),
        ("no_such_module:f", "no_such_module cannot be imported"),
        ("own_features:other", "own_features has nothing called other that can be called"),
    ):
        with pytest.raises(EvaluationError, match=f"--features {name}: {said}"):
            find_network(name, CPU)
    with pytest.raises(EvaluationError, match="--weights: is of inception and dinov2; leave it out"):
        find_network("own_features:mean", CPU, WeightsChoice(tmp_path))


def test_the_digest_tells_weights_apart(monkeypatch: pytest.MonkeyPatch):
    digests = set()
    for scale in 1.0, 2.0, 1.0:
        monkeypatch.setattr(features, "imported", lambda name, scale=scale: Own(scale))
        digests.add(by_import_path("own:network", CPU).digest)
    assert len(digests) == 2
