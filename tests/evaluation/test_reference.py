"""Files of statistics: our own, and those that others publish. Nothing in them is run; what does not fit is said."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recipe.evaluation import foreign_statistics
from recipe.evaluation.distances import frechet_from_statistics
from recipe.evaluation.feature_set import EvaluationError, FeatureSet
from recipe.evaluation.reference import About, differences, load_reference, save_reference
from recipe.evaluation.statistics_files import open_reference, write_reference
from recipe.storage.places import MissingError

ABOUT = About("own:network", "d" * 64, 8, "digits", "e" * 64, "center-crop", {"-1": 2, "3": 18})


def statistics(width: int = 6, keep: bool = True, seed: int = 0) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, width, generator=generator)
    return FeatureSet(20, features.double().mean(0), torch.cov(features.double().T), features if keep else None)


@pytest.fixture
def six_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in place of Inception's 2048."""
    monkeypatch.setattr(foreign_statistics, "WIDTHS", {"inception": 6, "dinov2": 5})


@pytest.mark.parametrize("keep", [True, False])
def test_our_own_file(keep: bool, tmp_path: Path):
    path, given = tmp_path / "a.safetensors", statistics(keep=keep)
    write_reference(str(path), ABOUT, given)
    reference = open_reference(str(path), "anything")
    assert reference.about == ABOUT and reference.path == str(path) and reference.found.count == 20
    assert torch.equal(reference.found.mean, given.mean) and torch.equal(reference.found.covariance, given.covariance)
    if given.features is None:
        assert reference.found.features is None
    else:
        assert reference.found.features is not None and torch.equal(reference.found.features, given.features)
    write_reference(str(tmp_path / "b.safetensors"), ABOUT, given)
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_in_object_storage(bucket_folder: str):
    write_reference(f"{bucket_folder}/a.safetensors", ABOUT, statistics())
    assert open_reference(f"{bucket_folder}/a.safetensors", "x").about == ABOUT


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "empty", "other entry"])
def test_a_damaged_file(damage: str, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_reference(path, ABOUT, statistics())
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-8])
    elif damage == "bit":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "foreign":
        save_file({"mean": torch.zeros(3)}, path)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        save_file({"mean": torch.zeros(3)}, path, {"edm2-recipe statistics": "{}"})
    with pytest.raises(EvaluationError, match="is no whole file of statistics of this version; make the statistics"):
        load_reference(path, "a file")


def test_what_is_no_file_of_statistics(tmp_path: Path):
    with pytest.raises(EvaluationError, match=r"a.txt: statistics are files .safetensors, .npz, .pkl; make some with"):
        open_reference("a.txt", "inception")
    with pytest.raises(MissingError, match="there is no such file"):
        open_reference(str(tmp_path / "a.npz"), "inception")


def arrays(found: FeatureSet) -> dict[str, Any]:
    return {"mu": found.mean.numpy(), "sigma": found.covariance.numpy()}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.usefixtures("six_features")
def test_the_official_pickle(protocol: int, tmp_path: Path):
    """Both of its entries, by any protocol, of float64 and float32, in any order of memory."""
    path, fid, dino = tmp_path / "ref.pkl", statistics(6), statistics(5, seed=1)
    entries = {"fid": arrays(fid), "fd_dinov2": arrays(dino) | {"mu": arrays(dino)["mu"].astype(np.float32)}}
    entries["fid"]["sigma"] = np.asfortranarray(entries["fid"]["sigma"])
    path.write_bytes(pickle.dumps(entries, protocol))
    found = open_reference(str(path), "inception")
    assert torch.equal(found.found.mean, fid.mean) and torch.equal(found.found.covariance, fid.covariance)
    assert found.about == About("inception") and found.found.count is None
    other = open_reference(str(path), "dinov2").found
    torch.testing.assert_close(other.mean, dino.mean, rtol=1e-6, atol=1e-7)
    assert torch.equal(other.covariance, dino.covariance)


def test_numpys_new_names(monkeypatch: pytest.MonkeyPatch):
    """NumPy 2 calls the same things numpy._core."""
    data = pickle.dumps({"fid": arrays(statistics())}, 3).replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    monkeypatch.setattr(foreign_statistics, "WIDTHS", {"inception": 6})
    assert foreign_statistics.read_pickled(data, "inception", "it").mean.shape == (6,)


class Call:
    """A pickle of it calls something."""

    def __init__(self, function: Any, *arguments: Any):
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


@pytest.mark.usefixtures("six_features")
def test_hostile_pickles(tmp_path: Path):
    """Foreign names at any depth, NumPy's names with other arguments, cut and twisted bytes: one line, and no trace."""
    mark = tmp_path / "mark"
    good = arrays(statistics())
    objects = [
        Call(Path.touch, mark),
        {"fid": Call(Path.touch, mark)},
        {"fid": good | {"mu": Call(Path.touch, mark)}},
        {"fid": good | {"other": Call(eval, f"open({str(mark)!r}, 'w')")}},
        {"fid": good | {"mu": [1.0]}},
        [good],
        3,
        {"fid": good | {"mu": np.array([object()])}},
        {"fid": good | {"mu": np.array(["a"])}},
        {"fid": {}},
        {"fid": good | {"mu": np.zeros(6, dtype=">f8")}},
        {"fid": good | {"mu": np.dtype("f8")}},
        {"other": good},
        {"fid": good | {"mu": np.full(6, np.nan)}},
        {"fid": good | {"sigma": np.triu(np.ones((6, 6)))}},
        {"fid": good | {"sigma": np.ones((6, 5))}},
        {"fid": good | {"mu": np.zeros((6, 1))}},
    ]
    files = [pickle.dumps(each, protocol) for each in objects for protocol in (2, 4, 5)]
    whole = pickle.dumps({"fid": good}, 4)
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, 200, 3):
            data[place] = random.integers(0, 256)
        files.append(bytes(data[: random.integers(0, len(data))]))
    for data in files:
        with pytest.raises(EvaluationError) as caught:
            foreign_statistics.read_pickled(data, "inception", "it")
        assert str(caught.value).startswith("it: ") and "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.usefixtures("six_features")
def test_arrays_of_others(tmp_path: Path):
    """EDM's and JiT's mu and sigma, ADM's with further arrays, and our own."""
    given = statistics()
    np.savez(tmp_path / "edm.npz", **arrays(given))
    np.savez_compressed(tmp_path / "adm.npz", **arrays(given), mu_s=np.zeros(9), sigma_s=np.eye(9))
    write_reference(str(tmp_path / "ours.npz"), ABOUT, given)
    for name in "edm", "adm", "ours":
        found = open_reference(str(tmp_path / f"{name}.npz"), "inception").found
        assert torch.equal(found.mean, given.mean) and torch.equal(found.covariance, given.covariance)
        assert frechet_from_statistics(found.mean, found.covariance, given.mean, given.covariance) < 1e-6
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert sorted(file) == ["mu", "sigma"] and file["sigma"].dtype == np.float64


@pytest.mark.usefixtures("six_features")
def test_arrays_that_are_none(tmp_path: Path):
    given, path = arrays(statistics()), tmp_path / "a.npz"

    def says(text: str) -> None:
        with pytest.raises(EvaluationError, match=text) as caught:
            open_reference(str(path), "inception")
        assert "\n" not in str(caught.value)

    path.write_bytes(b"no archive")
    says("holds no arrays mu and sigma that can be read")
    np.savez(path, arr_0=np.zeros(3))
    says("holds no arrays mu and sigma")
    np.savez(path, mu=given["mu"], sigma=np.array([object()] * 3, dtype=object), allow_pickle=True)
    says("holds no arrays mu and sigma")
    np.savez(path, mu=given["mu"][:5], sigma=given["sigma"])
    says(r"has mu \[5\] and sigma \[6, 6\], but inception needs \[6\] and \[6, 6\]; it is of other features")
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", file.getvalue())
        archive.writestr("sigma.npy", file.getvalue())
    says("mu.npy is an array")


def test_what_must_not_be_compared():
    one = About("inception", "a" * 64, 64)
    assert differences(one, About("inception")) == [] and differences(one, one) == []
    other = About("dinov2", "b" * 64, 32)
    assert differences(one, other) == [
        "features (inception and dinov2)",
        f"weights or resizing ({'a' * 16} and {'b' * 16})",
        "resolution (64 and 32)",
    ]
