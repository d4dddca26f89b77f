from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from nsvq import data

PRESETS = sorted((Path(__file__).parents[2] / "experiments" / "data").glob("*.yaml"))
KINDS = {
    "celeba64": data.ImageFolder,
    "celebahq": data.CelebAHQ,
    "cifar10": data.CIFAR10,
    "image_folder": data.ImageFolder,
    "imagenet": data.ImageNet,
    "photographs": data.EmbeddedPhotographs,
}


def built(path: Path, *arguments: str) -> LightningDataModule:
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    return parser.instantiate(parser.parse_args(["--data", str(path), *arguments])).data


def test_every_data_module_has_a_preset():
    assert [path.stem for path in PRESETS] == sorted(KINDS)
    assert {kind.__name__ for kind in KINDS.values()} == set(data.__all__)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_builds_its_module_and_takes_overrides(path, tmp_path):
    assert path.read_text().startswith("# ")
    root = [] if path.stem == "photographs" else ["--data.root", str(tmp_path)]
    module = built(path, "--data.batch_size=7", *root)
    assert type(module) is KINDS[path.stem]
    assert module.batch_size == 7


def test_celeba64_trains_on_the_first_8000_names(tmp_path, monkeypatch):
    names = [f"{index:06d}.jpg" for index in range(1, 9001)]
    module = built(Path(PRESETS[0]), "--data.root", str(tmp_path))
    monkeypatch.setattr(module.reader, "find", lambda: names)
    module.setup()
    assert list(module.splits.train.names) == names[:8000]
    assert list(module.splits.val.names) == names[8000:]
    assert module.reader.evaluation(names).transform.resize is None
